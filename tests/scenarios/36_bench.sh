#!/bin/bash
# `bench` measures every field that it promises, and leaves nothing behind, Ctrl-C or not. No figure is judged.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python
command -v redis-server >/dev/null || skip "redis-server is not installed"

mkdir -p "$WORK/bench"
tiny=(--quick --sizes 1k --runs 2 --seconds 0.05 --shm-dir "$WORK/bench")

# children PID: the processes that it has started.
children() { cat "/proc/$1/task"/*/children 2>/dev/null; }
# nothing_left PID: neither its directories, nor semaphores, nor what it started.
nothing_left() {
    same "" "$(ls -A "$WORK/bench")" && same "" "$(find /dev/shm -name "sem.*bench$1n*")" &&
        same "" "$(pgrep -f "daoserver-bench$1/|bench$1n")"
}

"$DAOSERVER" bench "${tiny[@]}" --json >"$WORK/bench.json" 2>"$WORK/bench.log" &
bench=$!
PIDS+=("$bench")
wait "$bench"
check "bench --quick --json: exit 0" same 0 "$?"
check "... and nothing is left" nothing_left "$bench"

cat >"$WORK/fields.py" <<'PYTHON'
import json, sys
d = json.load(open(sys.argv[1]))
assert d["command"].startswith("daoserver bench --sizes 1k --runs 2"), d["command"]
assert d["machine"]["cores"] >= 1 and d["machine"]["kernel"], d["machine"]
assert [d["runs"], d["run_time_s"], len(d["sizes"])] == [2, 0.05, 1], d
size = d["sizes"][0]
assert size["frame_bytes"] == 1024 and size["paced_hz"] > 0 and size["source_depth_frames"] >= 1, size
assert set(size["floors"]) == {"memory_copy", "bare_tcp_spinning", "bare_tcp_blocking", "bare_libzmq"}, size["floors"]
def rising(entry):
    known = [entry[f] for f in ("p50_us", "p90_us", "p99_us", "p99_9_us", "max_us") if entry[f] is not None]
    assert len(known) >= 2 and known[0] >= 0 and known[-1] > 0, entry
for floor in size["floors"].values():
    rising(floor)
    assert floor["frames"] > 0, floor
assert size["floors"]["bare_tcp_blocking"]["flat_out_hz"] > 0
rows = size["daoserver"]
assert {row["transport"] for row in rows} == {"zmq", "tcp"}, rows
for row in rows:
    rising(row)
    assert "poll" in row
    assert set(row["lost"]) == {"lapped", "queue_full", "transport", "mirror_busy"}, row
    assert all(count >= 0 for count in row["lost"].values()), row
    assert row["frames_written"] >= row["frames_delivered"] >= row["frames_seen"] > 0, row
    for ratio in ("p50_to_bare_tcp", "p50_to_bare_zmq", "p99_to_bare_tcp", "highest_rate_to_bare_tcp"):
        assert ratio in row, row
    # A busy machine may hold no rate at all.
    assert row["highest_rate_hz"] is None or row["highest_rate_hz"] > 0 and row["highest_rate_mb_per_s"] >= 0, row
    for side in ("owner", "client"):
        assert row[side]["cpu_percent"] >= 0 and row[side]["resident_bytes"] > 1_000_000, row
PYTHON
check "every field is there" python3 "$WORK/fields.py" "$WORK/bench.json"

# interrupted SIGNAL: ends in time with one sentence, and nothing is left.
interrupted() {
    "$DAOSERVER" bench "${tiny[@]}" --runs 50 >"$WORK/out" 2>"$WORK/interrupted.log" &
    local pid=$!
    PIDS+=("$pid")
    eventually 10 test -S "$WORK/bench/daoserver-bench$pid/bench${pid}n1-client/control" || return 1
    kill "-$1" "$pid"
    eventually 10 not kill -0 "$pid" || return 1
    wait "$pid"
    same 1 "$?" && same "daoserver: The bench was interrupted." "$(tail -n 1 "$WORK/interrupted.log")" &&
        same "" "$(cat "$WORK/out")" && nothing_left "$pid"
}
check "Ctrl-C cleans up" interrupted INT
check "SIGTERM too" interrupted TERM

# Killed: nobody can clean up files then, but processes go.
"$DAOSERVER" bench "${tiny[@]}" --runs 50 >/dev/null 2>&1 &
bench=$!
PIDS+=("$bench")
eventually 10 test -S "$WORK/bench/daoserver-bench$bench/bench${bench}n1-client/control"
started=$(children "$bench")
kill -KILL "$bench"
wait "$bench" 2>/dev/null
# Who adopts them may not reap them: a zombie is gone.
all_gone() { for pid in $started; do grep -q '^State:[[:space:]]*[^Z]' "/proc/$pid/status" 2>/dev/null && return 1; done; :; }
check "it had started Redis and two daemons" test "$(wc -w <<<"$started")" = 3
check "killed, its children end" eventually 10 all_gone
rm -rf "$WORK/bench"/* /dev/shm/sem.*"bench${bench}n"*

# With the directory for temporary files the same, as it is by default.
publishing() {
    TMPDIR=$WORK/bench "$DAOSERVER" bench --sizes 1k --runs 1 --seconds 0.02 --shm-dir "$WORK/bench" --json |
        json 'len(d["publishing_64k"])'
}
check "not quick: what publishing costs, too" same 4 "$(publishing 2>/dev/null)"

check "a Redis that does not answer is said to be" fails 1 "cannot start a daemon" \
    "$DAOSERVER" bench "${tiny[@]}" --redis-port "$(free_port)"
start_redis
check "a Redis that is named is used" "$DAOSERVER" bench "${tiny[@]}" --runs 1 --redis-port "$REDIS_PORT"
check "... and no key stays in it" same "" "$(redis --scan --pattern 'dao:machines:bench*')"
no_redis=$(dirname "$DAOSERVER")
check "without redis-server it says what to do" fails 1 "install it (Debian: apt install redis-server)" \
    env PATH="$no_redis" "$DAOSERVER" bench "${tiny[@]}"
check "a wrong size" fails 2 "such as 1k,64k,1M" "$DAOSERVER" bench --sizes 1k,big
check "... and nothing is left of any" same "" "$(ls -A "$WORK/bench")"
finish
