#!/bin/bash
# A registry of a hundred machines with a hundred segments each: `list` has them all, and a daemon that has nothing new
# to say never walks through Redis' keys. Times are printed, none is asserted.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
# ms COMMAND...: runs it and prints how long it took.
ms() {
    local begun
    begun=$(date +%s%N)
    "$@" >/dev/null 2>&1
    echo "$((($(date +%s%N) - begun) / 1000000)) ms"
}
# The times say "now" by Redis' clock, without microseconds, as some Python daemons write them.
redis eval '
    local now = ARGV[1]
    for m = 1, 100 do
        local machine = string.format("dao:machines:m%03d", m)
        redis.call("MSET", machine .. ":ip", "10.0.0." .. m, machine .. ":hostname", string.format("m%03d", m),
            machine .. ":role", "minion", machine .. ":last_connect", now)
        for s = 1, 100 do
            local segment = string.format("%s:shm:seg%03d", machine, s)
            redis.call("MSET", segment .. ":dimensions", "[64, 64]", segment .. ":dtype", "uint16")
        end
    end' 0 "$(date -u +%Y-%m-%dT%H:%M:%S+00:00)" >/dev/null
keys() { redis dbsize; }
check "Redis has a hundred machines of a hundred segments" same 20400 "$(keys)"
mkdir -p "$WORK/alpha"

for again in 1 2 3; do echo "      list: $(ms at alpha list --json)"; done
at alpha list --json >"$WORK/list.json"
check "list has them all" same "100 10000" \
    "$(json '"%d %d" % (len(d), sum(len(m["shm_segments"]) for m in d))' <"$WORK/list.json")"
check "... in order" same '["m001", "m100", "seg001", "seg100"]' \
    "$(json '[d[0]["hostname"], d[-1]["hostname"], d[0]["shm_segments"][0], d[0]["shm_segments"][-1]]' <"$WORK/list.json")"

# Fifty segments here; beta mirrors one of them.
segments=()
for number in $(seq -w 50); do
    segments+=("${TAG}s$number")
    shm alpha create "${segments[-1]}" --shape 8x8 --dtype uint16 >/dev/null
done
for again in 1 2 3; do
    begun=$(date +%s%N)
    launch_daemon alpha --role minion
    until is_ready alpha; do sleep 0.005; done
    echo "      start to ready line: $((($(date +%s%N) - begun) / 1000000)) ms"
    ((again == 3)) || kill_daemon alpha TERM
done
start_daemon beta --role minion
all_there() { same 50 "$(at beta list --json | json 'sum(len(m["shm_segments"]) for m in d if m["hostname"] == "alpha")')"; }
check "all segments of a daemon that starts are in the registry" eventually 10 all_there
check "... and those of the others stay there" same 102 "$(at beta list --json | json 'len(d)')"
check "get" get beta alpha "${segments[7]}"
writer alpha "${segments[7]}" --rate 100
check "frames come" eventually 5 flows beta "remote_alpha_${segments[7]}"

calls() { redis info commandstats | tr -d '\r' | sed -n 's/^cmdstat_\([^:]*\):calls=\([0-9]*\).*/\1 \2/p'; }
count() { calls | awk -v name="$1" '$1 == name {n = $2} END {print n + 0}'; }
redis config resetstat >/dev/null
sleep 8
calls >"$WORK/calls"
echo "      commands of two daemons in 8 s: $(sort -k 2nr "$WORK/calls" | paste -sd, | sed 's/,/, /g')"
check "nobody walked through the keys meanwhile" same "0 0" "$(count scan) $(count keys)"
check "nothing was written but signs of life" same "0 0" "$(count del) $(count mset)"

# What changes is written, and no more than that: two keys of one segment.
redis config resetstat >/dev/null
shm alpha create "${TAG}new" --shape 4x4 --dtype float32 >/dev/null
appears() { same float32 "$(registered alpha "${TAG}new" dtype)"; }
check "a new segment is registered" eventually 5 appears
check "... without a walk through the keys" same "0 0" "$(count scan) $(count keys)"
shm alpha rm "${TAG}new"
check "... and goes again" eventually 5 not appears
check "... without one" same "0 0" "$(count scan) $(count keys)"

kill "$WRITER"
kill_daemon beta TERM
kill_daemon alpha TERM
# A mirror's heartbeat for its owner goes by itself.
check "both leave, and the others stay" same 20400 "$(redis --scan --pattern 'dao:machines:*' | wc -l)"

finish
