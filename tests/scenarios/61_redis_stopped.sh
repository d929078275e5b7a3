#!/bin/bash
# Redis is stopped for a minute, first as a process that no longer answers, then as one that is gone, and comes back
# empty: streams go on untouched, and the registry is complete within 5 s of its return. FLUSHALL is the same.
# OUTAGE=SECONDS makes it longer or shorter.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python
((OUTAGE = ${OUTAGE:-60}))

port=$(free_port)
start_redis "$port"
start_daemon alpha
start_daemon beta
x=${TAG}x y=${TAG}y
remote=$(mirror alpha "$x")
for name in "$x" "$y"; do shm alpha create "$name" --shape 16x16 --dtype uint16 --depth 512 >/dev/null; done
writer alpha "$x" --rate 100
eventually 5 in_registry alpha "$y" || fail "the other segment is registered"
streams_to alpha "$x" beta
before=$(inode "$(mirror_file beta alpha "$x")")
complete() { registered_all alpha "$x" "$y" && registered_all beta && served alpha "$x" '["beta"]'; }
disconnected() { same false "$(status "$1" 'd["redis"]["connected"]')"; }
lost() { mirror_of beta alpha "$x" 'sum(m["lost"].values())'; }
# untouched SECONDS: in every two of them frames came, in the same file, and the client answers.
untouched() {
    local end=$((SECONDS + $1)) count before_count
    count=$(counter beta "$remote")
    while ((SECONDS < end)); do
        before_count=$count
        sleep 2
        count=$(counter beta "$remote")
        ((count > before_count)) || { echo "no frame came after $before_count" && return 1; }
        answers beta 3 || { echo "the client does not answer" && return 1; }
    done
    same "$before" "$(inode "$(mirror_file beta alpha "$x")")"
}
eventually 15 complete || fail "the registry is complete"

# A process that no longer answers, connections open: the half-open case.
begun_lost=$(lost)
kill -STOP "$REDIS_PID"
recovers "Redis hangs: the owner notices" 15 disconnected alpha
recovers "... and the client" 15 disconnected beta
check "... frames come all the time" untouched $((OUTAGE / 6))
kill -CONT "$REDIS_PID"
connected() { same "true true" "$(status alpha 'd["redis"]["connected"]') $(status beta 'd["redis"]["connected"]')"; }
recovers "Redis goes on: both are connected" 5 connected
check "... the registry is complete" complete

kill -9 "$REDIS_PID"
wait "$REDIS_PID" 2>/dev/null
check "Redis is gone: frames come all the time" untouched "$OUTAGE"
start_redis "$port"
recovers "back, empty, after $OUTAGE s: the registry is complete" 5 complete
recovers "... and the client's heartbeat, which comes every 10 s" 12 beats alpha "$x" beta
check "... no frame was lost all the while" same "$begun_lost" "$(lost)"
check "... a new mirror can be had" get beta alpha "$y"

redis flushall >/dev/null
recovers "FLUSHALL: the registry is complete" 5 complete
recovers "... and the client's heartbeat, which comes every 10 s" 12 beats alpha "$x" beta
check "the roles are what they were" same "master minion" "$(redis get dao:machines:alpha:role) $(redis get dao:machines:beta:role)"

finish
