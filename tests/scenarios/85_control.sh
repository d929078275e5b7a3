#!/bin/bash
# The control protocol, over the socket and over standard input and output.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

control() { python3 "$(dirname "$0")/../peers/control.py" "$@"; }
socket_of() { echo "$WORK/$1/.daoserver-$1.sock"; }

start_redis
x=${TAG}x
start_daemon alpha
start_daemon beta
start_daemon frozen
shm alpha create "$x" --shape 8x6 --dtype float32 >/dev/null
shm frozen create "$x" --shape 8x6 --dtype float32 >/dev/null
put alpha "$x" 1
check "both are registered" eventually 5 in_registry alpha "$x"
check "... too" eventually 5 in_registry frozen "$x"
kill -STOP "${DAEMON[frozen]}"

beta=$(socket_of beta)
check "every operation answers as it should" control every_op "$beta" alpha "$x"
check "slow operations hold up nothing, and those of one stream are done in turn" control pipelined "$beta" alpha "$x" frozen
check "who stops sending is answered" control one_way_out "$beta" alpha "$x"
check "leases end with their connection, mirrors with their last holder" control leases "$beta" alpha "$x"
check "who hangs up is waited for no more" control gone_while_waiting "$beta" frozen "$x"
check "malformed lines get their position; a line over 1 MB ends the connection" control malformed "$beta"
for seed in 1 2 3 4; do
    check "mutated requests, seed $seed" control mutated "$beta" alpha "$x" "$seed" 1000
done
check "... and the daemon is well" at beta status

# second FLAGS...: another daemon of beta's name, in its directory.
second() {
    "$DAOSERVER" --redis-host 127.0.0.1 --redis-port "$REDIS_PORT" --hostname beta --shm-dir "$WORK/beta" --advertise-ip 127.0.0.1 "$@"
}
check "a second daemon is told who holds the socket" \
    fails 1 "is held by the running daemon of 'beta' (process ${DAEMON[beta]}); stop it first." second
check "... and one at another socket who has the name" fails 1 "Another daemon of this machine is 'beta'" second --control "$WORK/other.sock"
check "... and leaves no socket behind" test ! -e "$WORK/other.sock"
echo precious >"$WORK/file"
check "what is no socket is left alone" fails 1 "something else is there; name another." "$DAOSERVER" \
    --redis-host 127.0.0.1 --redis-port "$REDIS_PORT" --hostname gamma --shm-dir "$WORK/beta" --control "$WORK/file"
check "... as it was" same precious "$(cat "$WORK/file")"
check "... and the first one runs" at beta status

# stdio NAME: flags of a private daemon of that name.
stdio() {
    mkdir -p "$WORK/$1"
    echo --redis-host 127.0.0.1 --redis-port "$REDIS_PORT" --hostname "$1" --shm-dir "$WORK/$1" --log-level error \
        --advertise-ip 127.0.0.1 --base-pub-port "$(free_port)"
}
# shellcheck disable=SC2046 # words
check "--stdio: start, stop and start, and the end of standard input" control stdio "$DAOSERVER" alpha "$x" $(stdio gamma)
# shellcheck disable=SC2046
check "--stdio in a pipe" control stdio_pipe "$DAOSERVER" alpha "$x" $(stdio gamma)
# shellcheck disable=SC2046
check "--stdio ends with its parent" control stdio_orphan "$DAOSERVER" $(stdio gamma)
check "... and is registered no more" eventually 5 same "" "$(redis --scan --pattern 'dao:machines:gamma:*')"
# shellcheck disable=SC2046
check "--stdio beside a daemon of the same name and socket is refused" \
    control stdio_refused "$DAOSERVER" OSError "is held by the running daemon of 'beta'" $(stdio beta)
# shellcheck disable=SC2046
check "... and with another socket, too" control stdio_refused "$DAOSERVER" OSError \
    "Another daemon of this machine is 'beta' for Redis" $(stdio beta) --control "$WORK/other.sock"
check "... and what stands in the registry stays" same 127.0.0.1 "$(redis get dao:machines:beta:ip)"
# shellcheck disable=SC2046
check "--stdio without Redis says so" control stdio_refused "$DAOSERVER" ConnectionError "Cannot connect to Redis at 127.0.0.1:1" \
    $(stdio gamma) --redis-port 1

# Two daemons of different names that share a directory: one mirror, one writer.
check "a mirror" get beta alpha "$x"
launch delta "$WORK/delta.log" "$DAOSERVER" --redis-host 127.0.0.1 --redis-port "$REDIS_PORT" --hostname delta \
    --shm-dir "$WORK/beta" --advertise-ip 127.0.0.1 --base-pub-port "$(free_port)"
eventually 10 grep -q "^daoserver running" "$WORK/delta.log"
at_delta() { "$DAOSERVER" "$@" --hostname delta --shm-dir "$WORK/beta"; }
check "a second daemon does not write into it" fails 1 "is kept by another daemon of this machine" at_delta get alpha "$x" --timeout 5
check "... nor remove it" test -e "$(mirror_file beta alpha "$x")"
check "... and the first one's goes on" put alpha "$x" 7
check "... with its frames" eventually 5 shm beta read "$(mirror alpha "$x")"
check "release" at beta release alpha "$x"

# A lease over a restart.
launch beta "$WORK/lease.log" python3 "$(dirname "$0")/../peers/control.py" restarted "$beta" alpha "$x" "$WORK/report"
holder=$LAUNCHED
eventually 10 grep -q held "$WORK/report"
kill_daemon beta TERM
start_daemon beta
printf 'go on' >"$WORK/report"
check "a lease is taken up again by its holder after a restart; its mirror stays, and ends with it" wait "$holder"
python3 - "$beta" "$x" <<'EOP' >"$WORK/killed.log" 2>&1 &
import json, socket, sys, time
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(json.dumps({"op": "get_remote_shm", "hostname": "alpha", "shm": sys.argv[2], "lease": True}).encode() + b"\n")
peer.recv(65536)
time.sleep(1000)
EOP
PIDS+=("$!")
check "a lease" eventually 5 test -e "$(mirror_file beta alpha "$x")"
kill_daemon beta KILL
check "... whose daemon is killed leaves a mirror and a socket, which its successor replaces" test -e "$(mirror_file beta alpha "$x")" -a -e "$beta"
start_daemon beta
check "... and the mirror goes when nobody asks for it again" eventually 20 test ! -e "$(mirror_file beta alpha "$x")"

check "stop over the socket ends the daemon" control stop "$beta"
check "... with its entry in the registry" eventually 3 same "" "$(redis --scan --pattern 'dao:machines:beta:*')"
wait "${DAEMON[beta]}"
check "... and exit code 0" same 0 "$?"
kill -CONT "${DAEMON[frozen]}"
finish
