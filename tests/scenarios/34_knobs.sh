#!/bin/bash
# How streams wait (--poll) and where they run (--cpu, --rt-priority, --lock-memory): each way of waiting carries a
# stream whole; threads are where they were asked to be; what the host refuses is said, and the daemon runs on.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

# threads HOST PATTERN: process directories of the daemon's threads whose names begin so.
threads() {
    local name
    for name in "/proc/${DAEMON[$1]}"/task/*/comm; do
        grep -q "^$2" "$name" 2>/dev/null && dirname "$name"
    done
}
# field HOST PATTERN NAME: a line of those threads' status.
field() { threads "$1" "$2" | while read -r task; do awk -v name="$3:" '$1 == name {print $2}' "$task/status"; done; }
# policies HOST PATTERN: scheduling policy and priority of each; 1 is SCHED_FIFO.
policies() { threads "$1" "$2" | while read -r task; do sed 's/.*) //' "$task/stat" | awk '{print $39, $38}'; done; }
# Ticks of processor time that these threads have had.
ticks() { threads "$1" "$2" | while read -r task; do sed 's/.*) //' "$task/stat"; done | awk '{sum += $12 + $13} END {print sum + 0}'; }
locked_kb() { awk '/^VmLck:/ {print $2}' "/proc/${DAEMON[$1]}/status"; }

start_redis
x=${TAG}x
declare -A used=()
for mode in spin adaptive sleep; do
    start_daemon "alpha$mode" --poll "$mode" --base-pub-port "$(free_port)"
    start_daemon "beta$mode" --poll "$mode"
    shm "alpha$mode" create "$x$mode" --shape 64 --dtype uint16 --depth 8 >/dev/null
    shm "alpha$mode" write "$x$mode" --fill 0
    check "$mode: get" eventually 5 get "beta$mode" "alpha$mode" "$x$mode"
    before=$(ticks "alpha$mode" "dao-pub-")
    sleep 2
    used[$mode]=$(($(ticks "alpha$mode" "dao-pub-") - before))
    writer "alpha$mode" "$x$mode" --rate 200 --count 200
    wait "$WRITER"
    arrived() { same "$(counter "alpha$mode" "$x$mode")" "$(mirror_of "beta$mode" "alpha$mode" "$x$mode" 'm["source_counter"]')"; }
    check "$mode: the last frame arrives" eventually 5 arrived
    whole() { mirror_of "beta$mode" "alpha$mode" "$x$mode" 'm["frames"] + sum(m["lost"].values()) >= 200'; }
    check "$mode: every frame is there or counted" same true "$(whole)"
    kill_daemon "beta$mode" TERM
    kill_daemon "alpha$mode" TERM
done
echo "      processor time of a quiet stream in 2 s, in ticks of 10 ms: spin ${used[spin]}, adaptive ${used[adaptive]}, sleep ${used[sleep]}"

# Where threads run.
core=$(awk '/^Cpus_allowed_list:/ {print $2}' /proc/self/status | sed 's/[-,].*//')
start_daemon gamma --cpu "$core,1023" --lock-memory
start_daemon delta --cpu "$core"
shm gamma create "${x}p" --shape 64 --dtype uint16 >/dev/null
shm gamma write "${x}p" --fill 0
check "get from a pinned owner" eventually 5 get delta gamma "${x}p"
check "the publisher is pinned" same "$core" "$(field gamma dao-pub- Cpus_allowed_list)"
check "the mirror is pinned" same "$core" "$(field delta dao-mir- Cpus_allowed_list)"
check "other threads are not" same "$(field gamma dao-heartbeat Cpus_allowed_list)" \
    "$(awk '/^Cpus_allowed_list:/ {print $2}' /proc/self/status)"
check "a core that is not there is named" grep -q "core 1023 of --cpu is left out: " "$WORK/gamma.log"
if grep -q -e "--lock-memory is left out: " "$WORK/gamma.log"; then
    pass "memory cannot be locked here, and that is said"
else
    check "memory is locked" test "$(locked_kb gamma)" -gt 0
fi
kill_daemon delta TERM
kill_daemon gamma TERM

# Priority: with and without the right to it.
start_daemon epsilon --rt-priority 7
shm epsilon create "${x}r" --shape 64 --dtype uint16 >/dev/null
shm epsilon write "${x}r" --fill 0
start_daemon zeta
check "get from an owner with priority" eventually 5 get zeta epsilon "${x}r"
if grep -q -e "--rt-priority 7 is left out: " "$WORK/epsilon.log"; then
    pass "there is no priority to be had here, and that is said"
else
    check "the publisher has its priority" same "1 7" "$(policies epsilon dao-pub-)"
    check "other threads have none" same "0 0" "$(policies epsilon dao-heartbeat)"
fi
kill_daemon epsilon TERM
if [[ $(id -u) == 0 ]] && command -v setpriv >/dev/null; then
    mkdir -p "$WORK/eta"
    plain="$WORK/plain"
    printf '#!/bin/bash\nulimit -r 0 -l 64\nexec setpriv --bounding-set=-sys_nice,-ipc_lock --inh-caps=-sys_nice,-ipc_lock -- %q "$@"\n' \
        "$DAOSERVER" >"$plain"
    chmod +x "$plain"
    privileged=$DAOSERVER
    DAOSERVER=$plain start_daemon eta --rt-priority 7 --lock-memory --poll adaptive
    DAOSERVER=$privileged
    check "a refused priority is said" grep -q -e "--rt-priority 7 is left out: " "$WORK/eta.log"
    check "refused locked memory is said" grep -q -e "--lock-memory is left out: " "$WORK/eta.log"
    shm eta create "${x}n" --shape 64 --dtype uint16 >/dev/null
    shm eta write "${x}n" --fill 0
    check "and the daemon serves all the same" eventually 5 get zeta eta "${x}n"
    kill_daemon eta TERM
fi
isolated=$(cat /sys/devices/system/cpu/isolated 2>/dev/null)
if [[ -z $isolated ]] && ! grep -q -e "--rt-priority 7 is left out: " "$WORK/epsilon.log"; then
    # No stream: with one it would do what is warned of.
    start_daemon theta --rt-priority 1 --poll spin
    check "spinning with priority on a shared core is warned of" grep -q "they are not isolated" "$WORK/theta.log"
    kill_daemon theta TERM
fi
check "a bad list of cores is a usage error" fails 2 "--cpu" "$DAOSERVER" --cpu 1,x
check "so is a priority that does not exist" fails 2 "--rt-priority" "$DAOSERVER" --rt-priority 100

finish
