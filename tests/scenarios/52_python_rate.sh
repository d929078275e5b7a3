#!/bin/bash
# A thousand frames of 64 kB a second for five seconds to a Python subscriber that only counts. What is missing must
# stand in the owner's counters; timing never fails it, an unexplained frame does.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

start_redis
start_daemon alpha
x=${TAG}x
shm alpha create "$x" --shape 256x128 --dtype uint16 >/dev/null
shm alpha write "$x" --fill 0
registered_here() { [[ -n "$(registered alpha "$x" dtype)" ]]; }
eventually 5 registered_here || fail "the segment is registered"
peer counting python_client --owner alpha --segment "$x:256x128:uint16" --check count
check "a Python subscriber has the current frame" eventually 10 true_of counting 'last("progress")["frames"] == 1'
before=$(counter alpha "$x")
begun=$(status alpha '(lambda p: p["frames"] + p["lost"]["lapped"])(d["publishers"][0])')
p() { json 'd["publishers"][0]'"$1" <"$WORK/publisher.json"; }

writer alpha "$x" --rate 1000 --count 5000
wait "$WRITER"
written=$(($(counter alpha "$x") - before))
# Published or lapped, each of them; and the subscriber has read all that came.
seen() { at alpha status --json >"$WORK/publisher.json" && same "$((begun + written))" "$(p '["frames"] + d["publishers"][0]["lost"]["lapped"]')"; }
check "every frame is published or counted as lapped" eventually 10 seen
came() { said counting 'last("progress")["frames"]'; }
quiet() { local now && now=$(came) && sleep 0.5 && same "$now" "$(came)"; }
eventually 20 quiet
received=$(($(came) - 1))
lapped=$(p '["lost"]["lapped"]')
full=$(p '["lost"]["python_queue_full"]')
missing=$((written - received - lapped))
echo "      written $written, received $received, lapped $lapped, missing $missing, left out of $full"
check "5000 frames were written" same 5000 "$written"
check "none came twice" test "$missing" -ge 0
check "what is missing was counted: it was still being sent an older one" same "$full" "$missing"

finish
