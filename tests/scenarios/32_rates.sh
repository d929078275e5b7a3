#!/bin/bash
# A thousand frames of 64 kB a second for five seconds: every frame is in the mirror, or in a counter that says where it
# was lost. Nothing is lost on a machine that has time for it; this one may not, and then that is said.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
shm alpha create "$x" --shape 256x128 --dtype uint16 --depth "${DEPTH:-1}" >/dev/null
shm alpha write "$x" --fill 0
sees_segment() { at beta list --json | grep -q "\"$x\""; }
eventually 5 sees_segment
check "get" get beta alpha "$x"
before=$(counter alpha "$x")
begun=$(status beta '[m["frames"] + sum(m["lost"].values()) for m in d["mirrors"]][0]')

# steal: time that this machine's processes waited for a processor, in units of 10 ms over all of them.
waited() { awk '/^some/ {sub("total=", "", $5); print $5}' /proc/pressure/cpu 2>/dev/null || echo 0; }
# How often a process that sleeps half a millisecond at a time slept two: a machine that is taken away for a moment (a
# virtual one) loses the frames of that moment, which overwrite each other in a segment of one frame.
python3 -c 'import time
end, pauses, last = time.monotonic() + 5, 0, time.monotonic()
while last < end:
    time.sleep(0.0005)
    now = time.monotonic()
    pauses += now - last > 0.002
    last = now
print(pauses)' >"$WORK/pauses" &
PIDS+=("$!")
sampler=$!
pressure=$(waited)
writer alpha "$x" --rate 1000 --count 5000
wait "$WRITER"
pressure=$(($(waited) - pressure))
wait "$sampler"
pauses=$(cat "$WORK/pauses")
arrived() { same "$(counter alpha "$x")" "$(status beta 'd["mirrors"][0]["source_counter"]')"; }
check "the last frame arrives" eventually 5 arrived

at beta status --json >"$WORK/mirror.json"
at alpha status --json >"$WORK/publisher.json"
written=$(($(counter alpha "$x") - before))
accounted=$(($(json 'd["mirrors"][0]["frames"] + sum(d["mirrors"][0]["lost"].values())' <"$WORK/mirror.json") - begun))
lost=$(json 'sum(d["mirrors"][0]["lost"].values())' <"$WORK/mirror.json")
echo "      written $written, mirrored $((accounted - lost)), lost $lost: $(json 'd["mirrors"][0]["lost"]' <"$WORK/mirror.json")"
echo "      published $(json 'd["publishers"][0]["frames"]' <"$WORK/publisher.json"), latency $(json 'd["mirrors"][0]["latency_us"]' <"$WORK/mirror.json")"
echo "      processes waited for a processor for $((pressure / 1000)) ms of these five seconds, and one was paused $pauses times"
check "5000 frames were written" same 5000 "$written"
check "none is unaccounted for" same "$written" "$accounted"
# A tenth of the time with somebody waiting is no machine that is free; one that does not say counts as busy.
if ((lost == 0)); then
    pass "none is lost"
elif [[ ! -r /proc/pressure/cpu ]] || ((pressure > 500000 || lost <= 5 * pauses)); then
    echo "      this machine was busy, or paused: $lost lost frames are no failure"
else
    fail "none is lost"
fi

finish
