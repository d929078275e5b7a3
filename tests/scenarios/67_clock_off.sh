#!/bin/bash
# A machine's clock is ten minutes ahead, or behind: nobody is evicted or cleaned up for it, the roles hold, streams go,
# and latencies and ages are those of the stream once the daemons know the difference.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python
command -v cc >/dev/null || skip "cc is not installed"

# The kernel has one wall clock for all: this is put between a program and the C library.
cat >"$WORK/clock.c" <<'C'
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long shift(void) { const char *text = getenv("CLOCK_SHIFT_S"); return text ? atol(text) : 0; }
int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += shift();
    return result;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
C
cc -shared -fPIC -O1 -o "$WORK/clock.so" "$WORK/clock.c" 2>"$WORK/cc.log" || skip "cc does not compile: $(head -n 1 "$WORK/cc.log")"
shifted() { LD_PRELOAD=$WORK/clock.so CLOCK_SHIFT_S=600 "$@"; }
later=$(shifted date -u +%s)
((later > $(date -u +%s) + 500)) || skip "a preloaded library does not shift clocks here"
REAL=$DAOSERVER
# with_clock SECONDS: from now on programs of ours have that clock.
with_clock() {
    printf '#!/bin/sh\nexport LD_PRELOAD=%s CLOCK_SHIFT_S=%s\nexec %s "$@"\n' "$WORK/clock.so" "$1" "$REAL" >"$WORK/shifted"
    chmod 755 "$WORK/shifted"
    DAOSERVER=$WORK/shifted
}
log_seconds() { date -u -d "$(head -n 1 "$WORK/$1.log" | cut -d ' ' -f 1 | tr T ' ')" +%s; }

start_redis
DAOSERVER=$REAL
start_daemon alpha --heartbeat-interval 1
for shift in 600 -600; do
    host=ahead
    ((shift < 0)) && host=behind
    with_clock "$shift"
    start_daemon "$host" --heartbeat-interval 1
    off=$(($(log_seconds "$host") - $(date -u +%s)))
    if ((${off#-} < 500)); then
        DAOSERVER=$REAL
        skip "the preloaded library does not reach the daemon (a static binary?): its clock is $off s off"
    fi
    check "$host: it runs as minion, $shift s off" grep -q "as minion" "$WORK/$host.log"
    x=${TAG}$host y=${TAG}${host}y
    shm "$host" create "$x" --shape 16x16 --dtype uint16 >/dev/null
    writer "$host" "$x" --rate 100
    DAOSERVER=$REAL
    shm alpha create "$y" --shape 16x16 --dtype uint16 >/dev/null
    writer alpha "$y" --rate 100
    recovers "$host: its segment is registered" 5 in_registry "$host" "$x"
    recovers "$host: alpha's is" 5 in_registry alpha "$y"
    check "$host: alpha mirrors it" get alpha "$host" "$x"
    check "$host: it mirrors alpha" get "$host" alpha "$y"
    recovers "$host: its stream goes" 5 flows alpha "$(mirror "$host" "$x")"
    recovers "$host: and alpha's" 5 flows "$host" "$(mirror alpha "$y")"
    known() { same true "$(mirror_of "$1" "$2" "$3" 'm["clock"]["corrected"]')"; }
    recovers "$host: the difference is known on one side" 20 known alpha "$host" "$x"
    recovers "$host: and on the other" 20 known "$host" alpha "$y"
    check "$host: and is ten minutes" same true "$(mirror_of alpha "$host" "$x" 'abs(abs(m["clock"]["offset_us"]) - 600e6) < 2e6')"
    truthful() { # truthful HOST OWNER NAME: neither latency nor age holds the ten minutes
        same "true" "$(mirror_of "$1" "$2" "$3" 'm["hops_us"]["whole"]["p50"] is not None and m["hops_us"]["whole"]["p50"] < 60e6 and m["age_us"] < 60e6')" &&
            (($(net "$1" "$(mirror "$2" "$3")" NET_AGE_US) < 60000000))
    }
    recovers "$host: latency and age are the stream's" 5 truthful alpha "$host" "$x"
    recovers "$host: on both sides" 5 truthful "$host" alpha "$y"
done

# Longer than an owner waits before it looks for silent clients; and a master cleans up.
at alpha cleanup >"$WORK/cleanup.log" 2>&1
check "the master's clean-up leaves both" same "ahead behind" "$(redis mget dao:machines:ahead:hostname dao:machines:behind:hostname | xargs)"
sleep 20
for host in ahead behind; do
    check "$host: still a client" served alpha "${TAG}${host}y" "[\"$host\"]"
    check "$host: nobody was evicted" not grep -q "is silent" "$WORK/alpha.log" "$WORK/$host.log"
    check "$host: the streams go" flows alpha "$(mirror "$host" "$TAG$host")"
    check "$host: both ways" flows "$host" "$(mirror alpha "$TAG${host}y")"
    check "$host: its time in the registry is Redis' own" test "$(at alpha list --json | json "[abs(__import__('datetime').datetime.fromisoformat(m['last_connect']).timestamp() - __import__('time').time()) < 60 for m in d if m['hostname'] == '$host'][0]")" = true
done

finish
