#!/bin/bash
# Several machines write back into one segment, each on a port of its own; ports in use are skipped.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
dm=${TAG}dm
there=$(mirror alpha "$dm")
shm alpha create "$dm" --shape 140 --dtype float32 >/dev/null
put alpha "$dm" 1
eventually 5 in_registry alpha "$dm" || fail "the segment is registered"

# Somebody listens on the first two ports of beta, who shares its range with gamma.
base=$(free_port)
cat >"$WORK/squat.py" <<'PYTHON'
import os, socket, sys, threading
held = []
for port in (int(sys.argv[2]), int(sys.argv[2]) + 1):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1) # a connection that ended there may still stand
    held.append(one)
    try:
        one.bind(("127.0.0.1", port))
        one.listen()
    except OSError as error:
        print(f"{port}: {error}", flush=True) # then somebody else listens there
open(sys.argv[1], "w").close()
threading.Event().wait()
PYTHON
python3 "$WORK/squat.py" "$WORK/squat.ready" "$base" >"$WORK/squat.log" &
PIDS+=("$!")
eventually 10 test -e "$WORK/squat.ready" || fail "somebody takes ports"
start_daemon beta --base-pub-port "$base"
start_daemon gamma --base-pub-port "$base"
start_daemon delta

both_get() {
    get_both beta alpha "$dm" >"$WORK/beta.get" 2>&1 &
    local one=$! code=0
    get_both gamma alpha "$dm" || code=1
    wait "$one" || code=1
    return "$code"
}
check "beta and gamma ask at the same time" both_get
check "... the owner listens to beta" eventually 10 linked alpha "$dm" beta
check "... and to gamma" eventually 10 linked alpha "$dm" gamma
ports() { registered alpha "$dm" connections | json 'sorted(r["client_pub_port"] for r in d if r["bidirectional"])'; }
own_ports() { same true "$(ports | json "len(d) == 2 == len(set(d)) and all($base + 2 <= port < $base + 50 for port in d)")"; }
check "each has a port of its own, none of them one in use" eventually 5 own_ports
echo "      from $base on: $(ports)"

everywhere() {
    local host
    has alpha "$dm" "$1" || return 1
    for host in "${@:2}"; do has "$host" "$there" "$1" || return 1; done
}
counters() {
    local host
    counter alpha "$dm"
    for host in "$@"; do counter "$host" "$there"; done
}
# each_once HOSTS...: one write on each of them, and on the owner, is everywhere, and counts once.
each_once() {
    local before host value=$RANDOM number=0
    before=$(counters "$@")
    for host in alpha "$@"; do
        number=$((number + 1))
        value=$((value + 1))
        if [[ $host == alpha ]]; then put alpha "$dm" "$value"; else put "$host" "$there" "$value"; fi
        eventually 5 everywhere "$value" "$@" || { echo "$host's write is not everywhere" && return 1; }
    done
    sleep 0.6
    same "$(for before in $before; do echo $((before + number)); done)" "$(counters "$@")"
}
check "each one's write is everywhere once" each_once beta gamma

check "delta comes when the stream is published already" get_both delta alpha "$dm"
check "... the owner listens to it" eventually 10 linked alpha "$dm" delta
check "... and each one's write is everywhere once" each_once beta gamma delta
check "three ports" same 3 "$(ports | json 'len(set(d))')"
check "status of the owner names all three" same '["beta", "delta", "gamma"]' \
    "$(published alpha "$dm" 'sorted(w["client"] for w in p["written_by"])')"

check "one is released" at beta release alpha "$dm"
check "... the others go on" each_once gamma delta
check "... and it comes back" get_both beta alpha "$dm"
check "... the owner listens to it again" eventually 10 linked alpha "$dm" beta
check "... each one's write is everywhere once" each_once beta gamma delta

# All at once, without waiting for each other: no frame goes round for ever, and all come to the same.
writers=()
for host in beta gamma delta; do
    writer "$host" "$there" --rate 400 --count 400
    writers+=("$WRITER")
done
writer alpha "$dm" --rate 400 --count 400
wait "$WRITER" "${writers[@]}"
agree() {
    local data host
    data=$(shm alpha read "$dm" --raw | od -An -tx1) || return 1
    for host in beta gamma delta; do
        [[ "$(shm "$host" read "$there" --raw | od -An -tx1)" == "$data" ]] || return 1
    done
}
check "1600 writes that collide: all agree within seconds of the last" eventually 3 agree
rest=$(counters beta gamma delta)
sleep 1.5
rested() { python3 -c 'import sys; a, b = (list(map(int, text.split())) for text in sys.argv[1:]); sys.exit(any(y - x > 2 for x, y in zip(a, b)))' "$rest" "$(counters beta gamma delta)"; }
check "... and nothing goes round" rested
check "... they still agree" agree

finish
