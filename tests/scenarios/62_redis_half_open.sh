#!/bin/bash
# Between the daemons and Redis stands a proxy that stops forwarding, dribbles a byte at a time, cuts in the middle of
# an answer, or refuses; and a Redis that is read-only or out of memory. Streams go on, status answers, and the registry
# is in order soon after it is over.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python

start_redis
through=$(free_port)
start_proxy "$WORK/mode" 127.0.0.1 127.0.0.1 "$through:$REDIS_PORT"
# The daemons know the proxy alone; what this scenario asks goes to Redis itself.
for host in alpha beta; do start_daemon "$host" --redis-port "$through"; done
x=${TAG}x
remote=$(mirror alpha "$x")
shm alpha create "$x" --shape 16x16 --dtype uint16 --depth 512 >/dev/null
writer alpha "$x" --rate 100
streams_to alpha "$x" beta

answer() { answers alpha 3 && answers beta 3; }
# lives UNTIL
lives() {
    local count before
    count=$(counter beta "$remote")
    while ((SECONDS < $1)); do
        before=$count
        sleep 1
        count=$(counter beta "$remote")
        ((count > before)) || { echo "no frame came after $before" && return 1; }
        answer || { echo "no answer within 3 s" && return 1; }
    done
}
made=0
# fault WHAT BEGIN END SECONDS: for so long; a segment is made meanwhile, which must be registered when it is over.
fault() {
    local what=$1 begin=$2 end=$3 until=$((SECONDS + $4)) name before
    made=$((made + 1)) name=$TAG$made
    before=$(mirror_of beta alpha "$x" 'sum(m["lost"].values())')
    $begin
    shm alpha create "$name" --shape 4 --dtype uint8 >/dev/null
    check "$what: frames come all the time, and both daemons answer" lives "$until"
    $end
    recovers "$what, over: what was made meanwhile is registered" 10 in_registry alpha "$name"
    recovers "$what, over: a mirror of it can be had" 10 get beta alpha "$name"
    check "$what: no frame was lost" same "$before" "$(mirror_of beta alpha "$x" 'sum(m["lost"].values())')"
    recovers "$what: the client's heartbeat stands" 12 beats alpha "$x" beta
    at beta release alpha "$name" >/dev/null
    shm alpha rm "$name"
}
forward() { mode "$WORK/mode" forward; }
stops() { mode "$WORK/mode" stop; }
dribbles() { mode "$WORK/mode" dribble; }
cuts() { mode "$WORK/mode" cut; }
refuses() { mode "$WORK/mode" refuse; }
fault "a Redis that goes silent" stops forward 8
fault "a Redis that dribbles" dribbles forward 6
fault "a Redis that is cut in the middle of an answer" cuts forward 6
fault "a Redis that refuses" refuses forward 4

# A replica of a master that is not there takes no writes.
accepts() { same null "$(status alpha 'd["redis"]["error"]')"; }
read_only() { redis replicaof 127.0.0.1 1 >/dev/null; }
writable() { redis replicaof no one >/dev/null; }
fault "a Redis that is read-only" read_only writable 6
check "... the log says so" grep -q "answers but takes no writes: READONLY" "$WORK/alpha.log"
full() { redis config set maxmemory 1 >/dev/null; }
roomy() { redis config set maxmemory 0 >/dev/null; }
fault "a Redis that is out of memory" full roomy 6
check "... the log says so" grep -q "answers but takes no writes: .*maxmemory" "$WORK/alpha.log"
recovers "... and when it is over" 15 accepts
check "nobody has said the same thing a hundred times" test "$(wc -l <"$WORK/alpha.log")" -lt 150

finish
