#!/bin/bash
# Ports that somebody else listens on are skipped, and every segment gets one of its own.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

# Listens on four ports in a row, and says which is the first.
cat >"$WORK/squat.py" <<'PYTHON'
import os, random, socket, sys, threading
while True:
    base, held = int(sys.argv[2]) + random.randrange(50), []
    try:
        # On all addresses, on one, and one that never listens.
        for offset, address, listen in ((0, "0.0.0.0", True), (1, "127.0.0.1", True), (2, "127.0.0.1", False), (4, "127.0.0.1", True)):
            one = socket.socket()
            held.append(one)
            one.bind((address, base + offset))
            if listen: one.listen()
        break
    except OSError:
        for one in held: one.close()
with open(sys.argv[1] + ".new", "w") as file: file.write(str(base))
os.rename(sys.argv[1] + ".new", sys.argv[1])
threading.Event().wait()
PYTHON
python3 "$WORK/squat.py" "$WORK/base" "$(free_port)" &
PIDS+=("$!")
eventually 10 test -e "$WORK/base" || fail "somebody takes ports"
base=$(cat "$WORK/base")

start_redis
start_daemon alpha --base-pub-port "$base"
start_daemon beta
for name in a b c; do shm alpha create "$TAG$name" --shape 4 --dtype uint8 >/dev/null; done
for name in a b c; do
    eventually 5 in_registry alpha "$TAG$name" || fail "$name is registered"
    shm alpha write "$TAG$name" --fill 1
    check "get $name" get beta alpha "$TAG$name"
    shm alpha write "$TAG$name" --fill 7
    check "... its frames arrive" eventually 5 sh -c "'$DAOSERVER' shm read '$(mirror_file beta alpha "$TAG$name")' --json | grep -q '7,7,7,7'"
done
check "the ports are the free ones" same "[$((base + 3)), $((base + 5)), $((base + 6))]" "$(status alpha 'sorted(p["port"] for p in d["publishers"])')"
check "... each for both transports" same true "$(status alpha 'all(p.get("tcp_port") in (None, p["port"]) for p in d["publishers"])')"
check "a port that cannot be: exit 2" fails 2 "--base-pub-port" "$DAOSERVER" --base-pub-port 70000

finish
