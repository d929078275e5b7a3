#!/bin/bash
# `bench --to HOST` measures to another machine and back, between two daemons that run: every field that it promises is
# there, nothing is left on either side, Ctrl-C or not, and a host that cannot is said to be one. No figure is judged.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
alpha=${TAG}alpha beta=${TAG}beta
start_daemon "$alpha"
start_daemon "$beta"
tiny=(--quick --sizes 1k --seconds 0.2)
bench() { at "$alpha" bench --to "$beta" "${tiny[@]}" "$@"; }

# Neither the segment that was made for it nor its mirror, nor their semaphores, nor an answer in Redis.
nothing_here() { same "" "$(find "$WORK/$alpha" -name '*.im.shm')" && same "[]" "$(status "$alpha" 'd["mirrors"]')"; }
nothing_there() { same "" "$(find "$WORK/$beta" -name '*.im.shm')" && same "[]" "$(status "$beta" 'd["publishers"]')"; }
no_semaphores() { same "" "$(find /dev/shm -name "sem.*daoserver_bench_$alpha*")"; }
no_keys() { same "" "$(redis --scan --pattern "dao:*bench*")"; }
nothing_left() { eventually 8 nothing_there && eventually 8 no_semaphores && eventually 12 no_keys; }

known() { at "$alpha" list --json | grep -q "\"$beta\""; }
eventually 5 known
bench --json >"$WORK/bench.json" 2>"$WORK/bench.log"
check "bench --to --json: exit 0" same 0 "$?"
check "... and nothing is left here at once" nothing_here
check "... nor there soon after" nothing_left

cat >"$WORK/fields.py" <<'PYTHON'
import json, sys
d, alpha, beta = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
assert d["command"] == f"daoserver bench --to {beta} --sizes 1k --runs 2 --seconds 0.2", d["command"]
assert d["machine"]["cores"] >= 1 and [d["from"], d["to"], d["runs"], d["run_time_s"]] == [alpha, beta, 2, 0.2], d
# One clock on this machine: it is ahead of itself by no more than the error.
clock = d["clock"]
assert 0 < clock["error_us"] and abs(clock["offset_us"]) <= clock["error_us"] + 0.01, clock
size, = d["sizes"]
assert [size["frame_bytes"], size["transport"]] == [1024, sys.argv[4]] and size["paced_hz"] > 0, size
names = ("p50_us", "p90_us", "p99_us", "p99_9_us", "max_us")
def rising(entry):
    known = [entry[name] for name in names if entry[name] is not None]
    assert len(known) >= 2 and known == sorted(known) and entry["frames"] > 0, entry
    return known
assert rising(size["round_trip"])[0] > 0 and rising(size["at_owner"])[0] >= 0, size
for way in ("out", "back"):
    # Each way takes less than both, as far as the clocks can tell.
    assert rising(size[way])[0] <= size["round_trip"]["p50_us"] + size[way]["error_us"], size
    assert size[way]["error_us"] == size["clock"]["error_us"], size
print("      round trip p50", size["round_trip"]["p50_us"], "out", size["out"]["p50_us"], "back", size["back"]["p50_us"], "clock", clock)
assert size["frames_written"] > 0 and size["frames_returned"] > 0, size
assert set(size["lost"]) == {"lapped", "stale", "queue_full", "transport", "mirror_busy", "unknown"}, size
assert sum(size["lost"].values()) >= size["frames_written"] - size["frames_returned"], size
print("      lost", size["lost"], "of", size["frames_written"], "highest", size["highest_rate_hz"])
# A busy machine may hold no rate at all.
assert size["highest_rate_hz"] is None or size["highest_rate_hz"] > 0 and size["highest_rate_mb_per_s"] >= 0, size
PYTHON
check "every field is there" python3 "$WORK/fields.py" "$WORK/bench.json" "$alpha" "$beta" "${TRANSPORT:-tcp}"
cat "$WORK/check.log"

has_line() { grep -q -e "$1" "$WORK/table"; }
TRANSPORT=zmq
kill_daemon "$beta" TERM
start_daemon "$beta"
unset TRANSPORT
as_table() { bench --sizes 16,64k --runs 1 >"$WORK/table"; }
check "as a table, over zmq, two sizes one after the other" as_table
for line in "^16 at .* Hz, zmq  *p50 " "^64k at " "^there and back " "^out " "^at the owner " "^back " "^lost  *[0-9].* of " "^highest rate " \
    "^The clock of $beta is .* +- .* us"; do
    check "... with '$line'" has_line "$line"
done
check "... and nothing is left" nothing_here
check "... there either" nothing_left

# begin_bench: a long one, in its second run; sets SHELL_PID and BENCH, its process. end_bench SIGNAL: its exit code.
begin_bench() {
    bench --runs 50 >"$WORK/out" 2>"$WORK/interrupted.log" &
    SHELL_PID=$!
    PIDS+=("$SHELL_PID")
    eventually 15 grep -q "run 2 of 50" "$WORK/interrupted.log" || return 1
    BENCH=$(pgrep -P "$SHELL_PID" || echo "$SHELL_PID")
}
end_bench() {
    kill "-$1" "$BENCH"
    wait "$SHELL_PID" 2>/dev/null
}
# interrupted SIGNAL: ends in time with one sentence, and nothing is left.
interrupted() {
    begin_bench || return 1
    not nothing_here >/dev/null && not no_semaphores >/dev/null || return 1
    end_bench "$1"
    same 1 "$?" && same "daoserver: The bench was interrupted." "$(tail -n 1 "$WORK/interrupted.log")" &&
        same "" "$(cat "$WORK/out")" && nothing_here && nothing_left
}
check "Ctrl-C cleans up" interrupted INT
check "SIGTERM too" interrupted TERM
check "one that is killed" begin_bench
end_bench KILL
check "... takes its mirror with it" eventually 5 nothing_here
check "... and what was made for it" nothing_left

# A daemon that is killed leaves a segment behind: its next run removes it.
begin_bench
kill_daemon "$beta"
end_bench TERM
left() { test -e "$WORK/$beta/daoserver_bench_${alpha}_1024.im.shm"; }
check "a daemon that was killed left its segment behind" left
start_daemon "$beta"
check "... the next one removes it" eventually 5 not left
check "... and all is as before" nothing_left

check "an unknown host" fails 3 "No machine 'nobody' registered in Redis." at "$alpha" bench --to nobody "${tiny[@]}"
check "this machine itself" fails 1 "'$alpha' is this machine" at "$alpha" bench --to "$alpha" "${tiny[@]}"
redis mset dao:machines:py:ip 127.0.0.1 dao:machines:py:hostname py dao:machines:py:role minion \
    dao:machines:py:last_connect "$(date -u +%FT%T.000000+00:00)" >/dev/null
check "a machine with a Python daemon" fails 5 "Host 'py' has no segment to bench with" at "$alpha" bench --to py "${tiny[@]}"
check "no daemon here" fails 8 "No daoserver answers" at gamma bench --to "$beta" "${tiny[@]}"
check "a frame that is too large" fails 2 "at most 16M" at "$alpha" bench --to "$beta" --sizes 17M

# Anybody who reaches Redis can ask: for what makes no sense, or too much, or without being a machine.
for words in "" "x" "../x 16" "py -1" "py 0" "py 16777217" "py 99999999999999999999" "nobody 16"; do
    redis publish "dao:wake:$beta" "bench $words" >/dev/null
done
reasons() { grep -c "gets no segment to bench with" "$WORK/$beta.log"; }
three_refused() { same 3 "$(reasons)"; }
check "two sizes and a machine that nobody knows are refused with a warning" eventually 5 three_refused
check "... and nothing is made" nothing_there

kill_daemon "$beta" TERM
start_daemon "$beta" --read-only
check "a machine that is read-only" fails 6 "'$beta' is read-only" bench
kill_daemon "$beta" TERM
start_daemon "$beta" --allow 10.99.0.0/16
check "a machine that does not let us in" fails 6 "does not let this machine in (--allow)" bench
refused() { same 1 "$(status "$beta" 'd["counters"]["peers_refused"]')"; }
check "... counts it" refused
check "... and has made nothing" nothing_there

finish
