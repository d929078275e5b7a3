#!/bin/bash
# Daemons that are killed and started again come back to their streams without help, in any order.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
remote=$(mirror alpha "$x")
shm alpha create "$x" --shape 32x32 --dtype uint16 >/dev/null
writer alpha "$x" --rate 500
streams_to alpha "$x" beta
file=$(mirror_file beta alpha "$x")
before=$(inode "$file")

# The record that stands in Redis is that of the publisher that runs.
record_is_true() {
    [[ "$(registered alpha "$x" connections | json '[[r["client_hostname"], r["port"]] for r in d]')" == \
        "$(status alpha '[["beta", p["port"]] for p in d["publishers"]]')" ]]
}
back() { # back WHAT
    check "$1: the stream is back" eventually 15 flows beta "$remote"
    check "$1: the mirror is the same file" same "$before" "$(inode "$file")"
    check "$1: no stale record" eventually 5 record_is_true
}

kill_daemon alpha
start_daemon alpha
back "owner killed and restarted"

kill_daemon beta
start_daemon beta
check "client killed and restarted: it remembers its mirror" same "[\"$x\"]" "$(status beta '[m["shm"] for m in d["mirrors"]]')"
back "client killed and restarted"

kill_daemon alpha
kill_daemon beta
start_daemon alpha
start_daemon beta
back "both killed, the owner first again"

kill_daemon alpha
kill_daemon beta
start_daemon beta
check "the client waits for its owner" at beta status
start_daemon alpha
back "both killed, the client first again"

kill_daemon alpha TERM
start_daemon alpha
back "owner stopped and started"

kill_daemon beta TERM
check "client stopped: the mirror keeps its last frame" test -e "$file"
start_daemon beta
back "client stopped and started"

# One that is killed while its port is taken by somebody else: another port, and the client follows.
port=$(status alpha 'd["publishers"][0]["port"]')
kill_daemon alpha
cat >"$WORK/squat.py" <<'PYTHON'
import socket, sys, threading
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
open(sys.argv[2], "w").close()
threading.Event().wait()
PYTHON
python3 "$WORK/squat.py" "$port" "$WORK/squat.ready" &
PIDS+=("$!")
eventually 5 test -e "$WORK/squat.ready" || fail "somebody else takes the port"
start_daemon alpha
back "owner's port taken meanwhile"
check "... on another port" not same "$port" "$(status alpha 'd["publishers"][0]["port"]')"

finish
