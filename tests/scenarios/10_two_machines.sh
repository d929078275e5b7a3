#!/bin/bash
# The main job: what a program writes into a segment on one machine is, whole and in order, in a mirror on another.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
wfs=${TAG}wfs dm=${TAG}dm

shm alpha create "$wfs" --shape 64x64 --dtype uint16 --keyword gain=0.5 --keyword loop=7
shm alpha create "$dm" --shape 140 --dtype float32
shm alpha write "$wfs" --fill 11
check "both segments are in the registry" eventually 5 sh -c \
    "redis-cli -p $REDIS_PORT mget dao:machines:alpha:shm:$wfs:dtype dao:machines:alpha:shm:$dm:dtype | tr '\n' ' ' | grep -q 'uint16 float32'"
check "... dimensions" same "[64, 64] [140]" "$(registered alpha "$wfs" dimensions) $(registered alpha "$dm" dimensions)"

at beta list --json >"$WORK/list.json"
cat >"$WORK/list.py" <<'PYTHON'
import json, sys
found = {m["hostname"]: m for m in json.load(open(sys.argv[1]))}
assert set(found) == {"alpha", "beta"}, found
alpha = found["alpha"]
assert set(alpha) >= {"hostname", "ip", "role", "last_connect", "shm_segments"}, alpha
assert (alpha["ip"], alpha["role"], sorted(alpha["shm_segments"])) == ("127.0.0.1", "master", sorted(sys.argv[2:])), alpha
assert found["beta"]["role"] == "minion" and found["beta"]["shm_segments"] == [], found
PYTHON
check "list --json" python3 "$WORK/list.py" "$WORK/list.json" "$wfs" "$dm"

at beta get alpha "$wfs" --json >"$WORK/get.json"
check "get: exit 0" same 0 $?
check "get: the first frame is in when it returns" same 1 "$(json 'd["frames"]' <"$WORK/get.json")"
check "get --json" same "$(mirror_file beta alpha "$wfs") alpha $wfs [64, 64] uint16 ${TRANSPORT:-tcp}" \
    "$(json '" ".join([d["path"], d["hostname"], d["shm"], str(d["shape"]), d["dtype"], d["transport"]])' <"$WORK/get.json")"
check "get of one that was never written gives it, too" get beta alpha "$dm"
check "get of one that exists returns it at once" same "$(mirror_file beta alpha "$wfs")" "$(get beta alpha "$wfs")"

# info FIELDS of the source and of the mirror, without what differs by design.
keywords() { shm "$1" info "$2" --json | json '[k for k in d["keywords"] if not k["name"].startswith("NET_")]'; }
check "keywords are the source's" same "$(keywords alpha "$wfs")" "$(keywords beta "$(mirror alpha "$wfs")")"

# one_by_one NAME BYTES FRAMES: random frames, each waited for and compared.
one_by_one() {
    local name=$1 bytes=$2 frames=$3 remote before i
    remote=$(mirror alpha "$name")
    before=$(counter beta "$remote")
    for ((i = 1; i <= frames; i++)); do
        head -c "$bytes" /dev/urandom >"$WORK/frame"
        shm alpha write "$name" --raw "$WORK/frame"
        eventually 5 reached beta "$remote" $((before + i)) || { echo "frame $i of $name did not arrive" && return 1; }
        shm beta read "$remote" --raw | cmp - "$WORK/frame" || return 1
    done
    same $((before + frames)) "$(counter beta "$remote")"
}
check "wfs: 15 random frames, each bit for bit, each counted once" one_by_one "$wfs" 8192 15
check "dm: 15 random frames, each bit for bit, each counted once" one_by_one "$dm" 560 15

marks() { shm "$1" read "$2" --json | json '[d["atime"], d["shape"], d["dtype"]]'; }
check "wfs: atime, shape and dtype are the source's" same "$(marks alpha "$wfs")" "$(marks beta "$(mirror alpha "$wfs")")"
check "dm: atime, shape and dtype are the source's" same "$(marks alpha "$dm")" "$(marks beta "$(mirror alpha "$dm")")"
check "ten semaphores and one for the log" same 11 "$(find /dev/shm -name "sem.remote_alpha_${wfs}_sem*" | wc -l)"

# Numbered frames at full pace: all elements of a frame hold its counter.
cat >"$WORK/whole.py" <<'PYTHON'
"""Reads the mirrors in turn while they are written: each frame is whole, and none goes back. Until some have been seen of
each."""
import array, subprocess, sys, time
binary, mirrors = sys.argv[1], [(path, code, []) for path, code in zip(sys.argv[2::2], sys.argv[3::2])]
end = time.monotonic() + 10
while any(len(set(seen)) < 25 for _, _, seen in mirrors) and time.monotonic() < end:
    for path, code, seen in mirrors:
        frame = array.array(code, subprocess.run([binary, "shm", "read", path, "--raw"], stdout=subprocess.PIPE, check=True).stdout)
        assert len(set(frame)) == 1, f"a torn frame: {set(frame)}"
        assert not seen or frame[0] >= seen[-1], f"{frame[0]} after {seen[-1]}"
        seen.append(frame[0])
print([(len(seen), len(set(seen))) for _, _, seen in mirrors])
assert all(len(set(seen)) >= 25 for _, _, seen in mirrors)
PYTHON
before=$(status beta '{m["shm"]: m["frames"] + sum(m["lost"].values()) for m in d["mirrors"]}')
counts_before="$(counter beta "$(mirror alpha "$wfs")") $(counter beta "$(mirror alpha "$dm")")"
writer alpha "$wfs" --rate 1000 --count 3000
first=$WRITER
writer alpha "$dm" --rate 1000 --count 3000
eventually 5 reached beta "$(mirror alpha "$wfs")" 100
eventually 5 reached beta "$(mirror alpha "$dm")" 100
check "whole and in order at 1 kHz" python3 "$WORK/whole.py" "$DAOSERVER" "$(mirror_file beta alpha "$wfs")" H \
    "$(mirror_file beta alpha "$dm")" f
wait "$first" "$WRITER"
source_is() { same "$(counter alpha "$1")" "$(status beta "[m['source_counter'] for m in d['mirrors'] if m['shm'] == '$1'][0]")"; }
check "wfs: the last frame arrives" eventually 5 source_is "$wfs"
check "dm: the last frame arrives" eventually 5 source_is "$dm"
at beta status --json >"$WORK/status.json"
cat >"$WORK/account.py" <<'PYTHON'
import json, sys
before, counts_before, counts = json.loads(sys.argv[2]), sys.argv[4].split(), sys.argv[5].split()
for name, was, now in zip(sys.argv[3].split(), counts_before, counts):
    m = [m for m in json.load(open(sys.argv[1]))["mirrors"] if m["shm"] == name][0]
    assert m["connected"] is True, m
    lost = sum(m["lost"].values())
    assert m["frames"] + lost - before[name] == 3000, (before, m)
    # The mirror's counter has grown by what was written to it.
    assert int(now) - int(was) == 3000 - lost, (was, now, m)
    assert m["age_us"] >= 0 and m["latency_us"]["p50"] > 0, m
    print(name, "lost", m["lost"], "of 3000, latency", m["latency_us"])
PYTHON
check "3000 frames each: none unaccounted for, counters grow by what arrived" python3 "$WORK/account.py" \
    "$WORK/status.json" "$before" "$wfs $dm" "$counts_before" \
    "$(counter beta "$(mirror alpha "$wfs")") $(counter beta "$(mirror alpha "$dm")")"
cat "$WORK/check.log"
check "status --json of the owner" same "[[[\"beta\"], true], [[\"beta\"], true]]" \
    "$(status alpha '[[p["clients"], p["port"] > 0 and p["frames"] > 0] for p in d["publishers"]]')"

check "release" at beta release alpha "$wfs"
check "release: the mirror's file is gone" test ! -e "$(mirror_file beta alpha "$wfs")"
check "release: its semaphores are gone" same 0 "$(find /dev/shm -name "sem.remote_alpha_${wfs}_sem*" | wc -l)"
no_record() { same 0 "$(redis exists "dao:machines:alpha:shm:$wfs:connections" "dao:heartbeats:alpha:$wfs:beta" "dao:connections:alpha:$wfs")"; }
check "release: record, heartbeat and request are gone" eventually 5 no_record
check "release: the other mirror goes on" one_by_one "$dm" 560 1

kill_daemon beta TERM
check "SIGTERM: exit 0" same 0 $?
check "SIGTERM: the machine's keys are gone" same "" "$(redis --scan --pattern 'dao:machines:beta:*')"
kill_daemon alpha INT
check "SIGINT: exit 0" same 0 $?

finish
