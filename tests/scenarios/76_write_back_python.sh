#!/bin/bash
# Write-back between daoserver and Python peers, either way round. Their wire says neither who wrote a frame nor which
# it is: contents agree, and how often a frame is counted is what is measured here.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

start_redis
start_daemon alpha
start_daemon beta
ours=${TAG}ours pattern=8x6:float32
segment=$ours:$pattern
there=$(mirror alpha "$ours")
shm alpha create "$ours" --shape 8x6 --dtype float32 >/dev/null
frames make "$WORK" "$segment" --first 10
shm alpha write "$ours" --raw "$WORK/$ours.raw" --count 1
eventually 5 in_registry alpha "$ours" || fail "the segment is registered"

# write NUMBER: a program on alpha.
write() { frames make "$WORK" "$segment" --first "$1" && shm alpha write "$ours" --raw "$WORK/$ours.raw" --count 1; }
step() { kill -USR1 "${PEER[$1]}"; }

# Our owner, a Python client that writes, and a mirror of ours that reads.
port=$(free_port)
peer writer python_client --owner alpha --segment "$segment" --write-back "$port"
check "our owner, a Python client that writes back: it has the current frame" eventually 15 true_of writer 'last("progress")["number"] == 10'
check "... the owner listens at its port" eventually 15 written_by alpha "$ours" writer 'w["client"]'
check "... over Python's wire" same '["python", false]' "$(written_by alpha "$ours" writer '[w["wire"], w["lost_known"]]')"
check "... a mirror of ours beside it" get beta alpha "$ours"
link_up() { same true "$(written_by alpha "$ours" writer 'w["connected"]')"; }
check "... it is connected" eventually 10 link_up
sleep 0.5 # that our subscription is there nothing tells
count=$(counter alpha "$ours")
mirrored=$(counter beta "$there")
step writer
check "its frame is in our segment" eventually 5 holds alpha "" 11 "$segment"
check "... and in the mirror" eventually 5 holds beta remote_alpha_ 11 "$segment"
for number in 12 13 14 15; do
    step writer
    eventually 5 holds beta remote_alpha_ "$number" "$segment" || fail "frame $number arrives"
done
sleep 0.6
check "five frames: the segment's counter has grown by five" same $((count + 5)) "$(counter alpha "$ours")"
check "... and the mirror's" same $((mirrored + 5)) "$(counter beta "$there")"
check "... the client has them back, once each: nothing tells it that they are its own" eventually 2 true_of writer \
    '[last("progress")[k] for k in ("sent", "repeated", "number", "bad")] == [5, 5, 15, 0]'
check "status: frames, and who wrote last" same '[5, "writer"]' \
    "$(published alpha "$ours" '[p["written_by"][0]["frames"], p["last_writer"]]')"
write 16
check "our frame is at the client" eventually 5 true_of writer 'last("progress")["number"] == 16'
check "... and in the mirror" eventually 5 holds beta remote_alpha_ 16 "$segment"
end_peer writer
forgotten() { same "[]" "$(published alpha "$ours" 'p.get("written_by", [])')"; }
check "it leaves: the owner keeps its frame" holds alpha "" 16 "$segment"
check "... and drops the link" eventually 42 forgotten
at beta release alpha "$ours"
unpublished() { same "[]" "$(status alpha 'd["publishers"]')"; }
eventually 10 unpublished

# A Python client that sends back whatever it gets, since it cannot tell.
peer parrot python_client --owner alpha --segment "$segment" --write-back "$(free_port)" --echo
check "one that sends back whatever it gets" eventually 15 true_of parrot 'last("progress")["number"] == 16'
check "... the owner listens" eventually 15 written_by alpha "$ours" parrot 'w["client"]'
sleep 0.5
count=$(counter alpha "$ours")
write 17
check "... has our frame" eventually 5 true_of parrot 'last("progress")["number"] == 17'
sleep 1
grown=$(($(counter alpha "$ours") - count))
echo "      our one frame counts as $grown"
check "... and does not go round" same 1 "$grown"
parrot_echoes() { test "$(written_by alpha "$ours" parrot 'w["echoes"]')" -ge 1; }
check "... what came back is counted" parrot_echoes
echo "      $(written_by alpha "$ours" parrot '{k: w[k] for k in ("frames", "repeated", "echoes")}')"
end_peer parrot

# A Python owner, and our client that writes. It takes what comes, and publishes it like its own.
owner() { # owner HOST [OPTIONS...]: and a mirror of its segment on beta
    local segment=$TAG$1:$pattern remote
    remote=$(mirror "$1" "$TAG$1")
    python_owner "$1" --segment "$segment" --port "$(free_port)" --poll 0.5 "${@:2}"
    check "$1, our client: get --bidirectional" get_both beta "$1" "$TAG$1"
    check "$1: it subscribes" eventually 10 true_of "$1" 'last("subscribed").get("client") == "beta"'
    check "$1: its frame is in the mirror" eventually 5 holds beta "remote_$1_" 1 "$segment"
    sleep 0.5
    count=$(counter beta "$remote")
    local number
    for number in 2 3 4 5 6; do
        frames make "$WORK" "$segment" --first "$number"
        shm beta write "$remote" --raw "$WORK/$TAG$1.raw" --count 1
        eventually 5 true_of "$1" "last('taken').get('number') == $number" || fail "$1 has frame $number"
    done
    check "$1: it has all five, bit for bit, once" true_of "$1" '[last("taken")[k] for k in ("frames", "bad")] == [5, 0]'
    sleep 1
    check "$1: ... and no more of them after a while" true_of "$1" 'last("taken")["frames"] == 5'
    check "$1: the mirror keeps the last" holds beta "remote_$1_" 6 "$segment"
    echo "      five writes count as $(($(counter beta "$remote") - count)) in our mirror"
    step "$1"
    check "$1: its next frame is in the mirror" eventually 5 holds beta "remote_$1_" 7 "$segment"
    sleep 0.6
    check "$1: ... and does not go back" true_of "$1" 'last("taken")["frames"] == 5'
    check "$1: release" at beta release "$1" "$TAG$1"
    end_peer "$1"
}
owner pyowner
owner quiet --no-echo

finish
