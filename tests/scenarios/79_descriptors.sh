#!/bin/bash
# A process limit on descriptors is reached: by streams that are asked for, on the owner's side and on the client's, and
# by a crowd of connections. What does not fit is refused with a sentence, and what there is goes on.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python

REAL=$DAOSERVER
# limited N: from now on a daemon may have so many.
limited() {
    printf '#!/bin/bash\nulimit -n %s && exec %q "$@"\n' "$1" "$REAL" >"$WORK/limited"
    chmod 755 "$WORK/limited"
    DAOSERVER=$WORK/limited
}
start_redis
limited 120
start_daemon alpha
DAOSERVER=$REAL
start_daemon beta
names=()
for number in $(seq -w 30); do
    names+=("${TAG}n$number")
    shm alpha create "${names[-1]}" --shape 16 --dtype uint16 >/dev/null
done
writer alpha "${names[0]}" --rate 100
eventually 10 in_registry alpha "${names[-1]}" || fail "the segments are registered"
check "the owner may have 120 descriptors" grep -q "Max open files *120 *120" "/proc/${DAEMON[alpha]}/limits"
# ask HOST: of all, one after the other, until one is refused; GOT is how many there are.
ask() {
    GOT=0
    local name
    for name in "${names[@]}"; do
        at "$1" get alpha "$name" --timeout 4 >/dev/null 2>"$WORK/refused" || return 1
        GOT=$((GOT + 1))
    done
}
check "the owner's limit is reached before the thirtieth stream" not ask beta
ask beta
echo "      $GOT streams, then: $(cat "$WORK/refused")"
check "... some were served" test "$GOT" -ge 3
says() { grep -q "of 120 descriptors are in use; raise the limit (ulimit -n)" "$WORK/$1.log"; }
recovers "... it says so" 5 says alpha
check "... in status, too" grep -q "descriptors are in use" <(at alpha status)
check "... what it has goes on" flows beta "$(mirror alpha "${names[0]}")"
check "... it answers" answers alpha 3

# crowd HOST PORTS: at its doors, the control socket and these ports, until it has none left. CROWD is its process id.
cat >"$WORK/crowd.py" <<'PYTHON'
import json, os, socket, sys, time
ports, control, held = json.loads(sys.argv[1]), sys.argv[2], []
for turn in range(80):
    for target in ports + [control]:
        one = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
        one.settimeout(0.2)
        try:
            one.connect(target if isinstance(target, str) else ("127.0.0.1", target))
            held.append(one)
        except OSError:
            pass
open(sys.argv[3], "w").write(str(len(held)))
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(0.2)
PYTHON
crowd() {
    rm -f "$WORK/crowd"
    python3 "$WORK/crowd.py" "$2" "$WORK/$1/.daoserver-$1.sock" "$WORK/crowd" 2>"$WORK/crowd.log" &
    CROWD=$!
    PIDS+=("$CROWD")
    eventually 60 test -s "$WORK/crowd" || fail "a crowd comes"
    echo "      a crowd of $(cat "$WORK/crowd") connections; $1 has $(descriptors "${DAEMON[$1]}") descriptors"
}
disperse() {
    kill "$CROWD"
    wait "$CROWD" 2>/dev/null
}
crowd alpha "$(published alpha "${names[0]}" '[p["port"]]')"
check "a crowd of connections: the owner lives" kill -0 "${DAEMON[alpha]}"
check "... what it has goes on" eventually 5 flows beta "$(mirror alpha "${names[0]}")"
check "... and is still registered" registered_all alpha "${names[@]}"
disperse
recovers "the crowd has gone: it answers" 10 answers alpha 3
recovers "... and the stream goes" 10 flows beta "$(mirror alpha "${names[0]}")"
for name in "${names[@]:1:6}"; do at beta release alpha "$name"; done
room() { at beta get alpha "${names[GOT]}" --timeout 4; }
recovers "... streams that ended make room for another" 40 room

# The same on the client's side.
limited 130
start_daemon gamma
DAOSERVER=$REAL
kill_daemon alpha TERM
start_daemon alpha
recovers "the owner without a limit: the stream is back" 15 flows beta "$(mirror alpha "${names[0]}")"
check "the client's limit is reached before the thirtieth mirror" not ask gamma
check "... with a sentence" grep -q "of 130 descriptors are in use; raise the limit" "$WORK/refused"
check "... what it has goes on" flows gamma "$(mirror alpha "${names[0]}")"
check "... it answers" answers gamma 3

# A crowd there, while the owner goes and comes back: links are made anew without a descriptor to spare.
crowd gamma "[]"
check "a crowd of connections: the client lives" kill -0 "${DAEMON[gamma]}"
kill_daemon alpha
sleep 6
check "... the owner is gone: the client lives" kill -0 "${DAEMON[gamma]}"
start_daemon alpha
recovers "... the owner is back: so is the stream" 15 flows gamma "$(mirror alpha "${names[0]}")"
disperse
recovers "the crowd has gone: it answers" 10 answers gamma 3
all_back() { same "$GOT" "$(status gamma 'sum(m["connected"] for m in d["mirrors"])')"; }
recovers "... and all its mirrors are connected" 15 all_back

finish
