#!/bin/bash
# Two hundred streams at 10 Hz at the same time: every frame of each is in its mirror or in a counter of losses, and none
# is lost where the machine has time for them. And what one stream of 16 MB frames costs in memory, which is printed.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python
((STREAMS = ${STREAMS:-200}))

start_redis
start_daemon alpha
start_daemon beta
names=()
for number in $(seq -w "$STREAMS"); do
    names+=("${TAG}n$number")
    shm alpha create "${names[-1]}" --shape 16x16 --dtype uint16 --depth 8 >/dev/null
done
sees_all() { same "$STREAMS" "$(at beta list --json | json 'sum(len(m["shm_segments"]) for m in d if m["hostname"] == "alpha")')"; }
check "$STREAMS segments are registered" eventually 20 sees_all
# All of them over one connection, as a program would.
cat >"$WORK/get.py" <<'PYTHON'
import json, socket, sys
path, names = sys.argv[1], sys.argv[2:]
daemon = socket.socket(socket.AF_UNIX)
daemon.settimeout(60)
daemon.connect(path)
answers = daemon.makefile()
asked = 0
for answered in range(len(names)):
    # More than so many at a time are refused.
    for name in names[asked : answered + 16]:
        ask = {"id": name, "op": "get_remote_shm", "hostname": "alpha", "shm": name}
        daemon.sendall(json.dumps(ask).encode() + b"\n")
        asked += 1
    answer = json.loads(answers.readline())
    assert "ok" in answer, answer
PYTHON
begun=$(date +%s%N)
check "all are mirrored" python3 "$WORK/get.py" "$WORK/beta/.daoserver-beta.sock" "${names[@]}"
echo "      $STREAMS streams asked for in $((($(date +%s%N) - begun) / 1000000)) ms"
all_connected() { same "$STREAMS" "$(status beta 'sum(m["connected"] and m["frames"] > 0 for m in d["mirrors"])')"; }
check "... and connected, each with the frame that was there" eventually 20 all_connected
begun_frames=$(status beta 'sum(m["frames"] for m in d["mirrors"])')

cpu_ms() { awk '{print ($14 + $15) * 10}' "/proc/$1/stat"; }
waited() { awk '/^some/ {sub("total=", "", $5); print $5}' /proc/pressure/cpu 2>/dev/null || echo 0; }
quiet=$(($(cpu_ms "${DAEMON[alpha]}"))) quiet_beta=$(cpu_ms "${DAEMON[beta]}")
sleep 3
echo "      CPU of $STREAMS quiet streams: owner $((($(cpu_ms "${DAEMON[alpha]}") - quiet) / 30)) %, client $((($(cpu_ms "${DAEMON[beta]}") - quiet_beta) / 30)) % of a core"

pressure=$(waited)
writers=()
for name in "${names[@]}"; do
    writer alpha "$name" --rate 10 --count 50
    writers+=("$WRITER")
done
for pid in "${writers[@]}"; do wait "$pid"; done
pressure=$(($(waited) - pressure))
settled() { same "$STREAMS" "$(status beta 'sum(m["source_counter"] is not None and m["source_counter"] >= 50 for m in d["mirrors"])')"; }
check "the last frame of each arrives" eventually 20 settled
at beta status --json >"$WORK/mirrors.json"
lost=$(json 'sum(sum(m["lost"].values()) for m in d["mirrors"])' <"$WORK/mirrors.json")
frames=$(($(json 'sum(m["frames"] for m in d["mirrors"])' <"$WORK/mirrors.json") - begun_frames))
echo "      $frames of $((STREAMS * 50)) frames mirrored, $lost lost: $(json '{cause: sum(m["lost"][cause] for m in d["mirrors"]) for cause in d["mirrors"][0]["lost"]}' <"$WORK/mirrors.json"); processes waited for a processor for $((pressure / 1000)) ms"
check "every frame is mirrored or counted as lost" same "$((STREAMS * 50))" "$((frames + lost))"
if ((lost == 0)); then
    pass "none is lost"
elif [[ ! -r /proc/pressure/cpu ]] || ((pressure > 500000)); then
    echo "      this machine was busy: $lost lost frames are no failure"
else
    fail "none is lost"
fi
kill_daemon beta TERM
kill_daemon alpha TERM

# RssAnon is what a daemon has for itself; the segments' own pages, one frame a side, come on top.
memory_kb() { awk '/^(VmRSS|RssAnon)/ {print $2}' "/proc/${DAEMON[$1]}/status" | paste -sd' '; }
big=${TAG}big
mkdir -p "$WORK/gamma"
shm gamma create "$big" --shape 2048x4096 --dtype uint16 >/dev/null
for transport in tcp zmq; do
    start_daemon gamma --transport "$transport"
    start_daemon delta --transport "$transport" --control "$WORK/delta/$transport.sock"
    before=("$(memory_kb gamma)" "$(memory_kb delta)")
    eventually 10 at delta get gamma "$big" --control "$WORK/delta/$transport.sock" || fail "get over $transport"
    writer gamma "$big" --rate 20 --count 60
    wait "$WRITER"
    sleep 0.5
    after=("$(memory_kb gamma)" "$(memory_kb delta)")
    for side in 0 1; do
        read -r rss anon <<<"${before[side]}"
        read -r rss_after anon_after <<<"${after[side]}"
        echo "      a stream of 16 MB over $transport, $( ((side)) && echo client || echo owner): $(((rss_after - rss) / 1024)) MB more resident, $(((anon_after - anon) / 1024)) MB of it its own"
    done
    came() { (($(at delta status --json --control "$WORK/delta/$transport.sock" | json 'd["mirrors"][0]["frames"]') > 10)); }
    check "frames of 16 MB come over $transport" came
    at delta release gamma "$big" --control "$WORK/delta/$transport.sock"
    kill_daemon delta TERM
    kill_daemon gamma TERM
done

finish
