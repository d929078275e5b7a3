#!/bin/bash
# Where a mirror's time goes: each step has its times in `status`, the worst frame is named, and a clock that is known to
# differ is taken out.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
shm alpha create "$x" --shape 64x64 --dtype uint16 --depth 8 >/dev/null
shm alpha write "$x" --fill 0
eventually 5 in_registry alpha "$x" || fail "the segment is registered"
check "get" get beta alpha "$x"
writer alpha "$x" --rate 200 --count 400
wait "$WRITER"
arrived() { same "$(counter alpha "$x")" "$(status beta 'd["mirrors"][0]["source_counter"]')"; }
check "the last frame arrives" eventually 5 arrived

cat >"$WORK/hops.py" <<'PYTHON'
import json, sys
mirror = json.load(open(sys.argv[1]))["mirrors"][0]
hops = mirror["hops_us"]
steps = ["write_to_seen", "seen_to_sent", "sent_to_received", "received_to_published"]
assert sorted(hops) == sorted(steps + ["whole"]), hops
for name, hop in hops.items():
    print("     ", name, hop)
    assert 0 <= hop["p50"] <= hop["p99"] <= hop["p99.9"] <= hop["max"], (name, hop)
# One clock on this machine: no step is longer than the whole, and the longest of each together are no less than it.
assert max(hops[step]["max"] for step in steps) <= hops["whole"]["max"] <= sum(hops[step]["max"] for step in steps), hops
assert mirror["worst"]["whole_us"] == hops["whole"]["max"], mirror["worst"]
assert 0 < mirror["worst"]["counter"] <= mirror["source_counter"], mirror["worst"]
print("      worst", mirror["worst"], "clock", mirror["clock"])
PYTHON
at beta status --json >"$WORK/status.json"
check "every step has its times, and the worst frame is named" python3 "$WORK/hops.py" "$WORK/status.json"
cat "$WORK/check.log"
check "status names the longest step" grep -q "(most of it .*, p50 .* us)" <(at beta status)

# Each says how far Redis' clock is ahead of its own: here all is one clock, so it is no more than the error.
known() { same true "$(status beta 'd["mirrors"][0]["clock"]["offset_us"] is not None')"; }
check "the clocks are compared" eventually 10 known
check "... and one clock is left as it is" same "[true, false]" "$(status beta '(lambda c: [abs(c["offset_us"]) <= c["error_us"], c["corrected"]])(d["mirrors"][0]["clock"])')"
# As if the owner's clock were ten seconds behind: Redis' clock is that far ahead of it.
redis set dao:machines:alpha:clock '[10000000.0, 50.0]' >/dev/null
behind() { same true "$(status beta '-10001000 < d["mirrors"][0]["clock"]["offset_us"] < -9999000')"; }
check "a clock that is ten seconds behind is noticed" eventually 10 behind
shm alpha write "$x" --fill 7
check "... a frame is mirrored" eventually 5 arrived
check "... and the difference taken out: that frame seems to arrive before it was written" \
    same "[true, true, 0.0]" "$(status beta '(lambda m: [m["clock"]["corrected"], m["worst"]["counter"] == m["source_counter"], m["hops_us"]["sent_to_received"]["max"]])(d["mirrors"][0])')"
redis set dao:machines:alpha:clock nonsense >/dev/null
reported() { grep -q "Redis key 'dao:machines:alpha:clock' is ignored" "$WORK/beta.log"; }
check "a value that makes no sense is ignored with a warning" eventually 10 reported

finish
