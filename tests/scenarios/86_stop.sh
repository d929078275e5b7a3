#!/bin/bash
# Daemons that are ended at awkward moments: each ends in order, with code 0, and leaves nothing behind.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

control() { python3 "$(dirname "$0")/../peers/control.py" "$@"; }
keys_of() { redis --scan --pattern "dao:machines:$1:*"; }

start_redis
x=${TAG}x
start_daemon alpha
shm alpha create "$x" --shape 8x6 --dtype float32 >/dev/null
check "a segment" eventually 5 in_registry alpha "$x"

# ended SECONDS: a daemon that gets a SIGTERM so long after its launch.
ended() {
    launch_daemon beta
    sleep "$1"
    kill "${DAEMON[beta]}" 2>/dev/null
    eventually 5 not kill -0 "${DAEMON[beta]}" || {
        kill -KILL "${DAEMON[beta]}"
        echo "it lives on"
        return 1
    }
    wait "${DAEMON[beta]}"
    same 0 "$?" && same "" "$(keys_of beta)" && test ! -S "$WORK/beta/.daoserver-beta.sock"
}
# From before its first thread to after its ready line.
for time in 0.005 0.01 0.02 0.03 0.04 0.05 0.06 0.07 0.08 0.1 0.15 0.2; do
    check "SIGTERM after $time s" ended "$time"
done
at_once() {
    launch_daemon beta
    eventually 5 is_ready beta
    kill "${DAEMON[beta]}"
    wait "${DAEMON[beta]}"
    same 0 "$?" && same "" "$(keys_of beta)"
}
for round in 1 2 3 4 5; do check "SIGTERM at the ready line, $round" at_once; done

flags=(--redis-host 127.0.0.1 --redis-port "$REDIS_PORT" --hostname gamma --shm-dir "$WORK/gamma" --log-level error
    --advertise-ip 127.0.0.1 --base-pub-port "$(free_port)")
mkdir -p "$WORK/gamma"
check "SIGTERM while nobody reads the answers" control unread "$DAOSERVER" 15 "${flags[@]}"
check "SIGTERM before a start that waits" control flood_then_signal "$DAOSERVER" 15 "${flags[@]}"
check "standard error that nobody reads" control no_stderr "$DAOSERVER" "${flags[@]}" --log-level info
check "... and nothing of it stays in the registry" same "" "$(keys_of gamma)"
check "... nor of its socket" test ! -e "$WORK/gamma/.daoserver-gamma.sock"

long=$(printf 'h%.0s' {1..90})
start_daemon "$long" --control "$WORK/long.sock" # a socket's path has a limit, too
check "a long host name" same "$long" "$(redis get "dao:machines:$long:hostname")"
kill_daemon "$long" TERM

start_daemon beta
beta=$WORK/beta/.daoserver-beta.sock
check "one stream in two spellings is one" control spellings "$beta" alpha "$x"
check "an id has a limit" control long_id "$beta"
check "a mirror" get beta alpha "$x"
kill -STOP "${DAEMON[alpha]}"
check "a write that is asked for in vain takes no mirror from readers" control vain_upgrade "$beta" alpha "$x"
kill -CONT "${DAEMON[alpha]}"
finish
