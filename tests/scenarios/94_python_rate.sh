#!/bin/bash
# scripts/daoServer.py's get_data(check=True) counts what it sees of 5000 frames at 1 kHz: in a segment of this machine
# and in a mirror, with one frame and with a ring. Prints the figures of this machine.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python.sh
. "$(dirname "$0")/python.sh"
need_numpy

count=${RATE_COUNT:-5000}
start_redis
start_daemon alpha --role master
start_daemon beta

# follow WHAT HOST NAME SOURCE [OPTIONS...]: counts in that segment what is written into alpha's SOURCE. Sets SEEN.
follow() {
    local what=$1 file="$WORK/$2/$3.im.shm" source=$4 follower
    shift 4
    : >"$WORK/follow.err.log"
    on_machine here rate "$file" "$@" >"$WORK/follow.log" 2>"$WORK/follow.err.log" &
    follower=$!
    eventually 10 grep -q ready "$WORK/follow.err.log" || fail "$what: it follows"
    shm alpha write "$source" --rate 1000 --count "$count"
    wait "$follower" || fail "$what: it ends well"
    SEEN=$(cat "$WORK/follow.log")
    printf '      %-22s %s\n' "$what" "$SEEN"
    check "$what: every frame is whole" same true "$(json 'd["whole"]' <<<"$SEEN")"
}
# enough: at least 99.9 % of the frames that were written into the segment.
enough() { same true "$(json 'd["seen"] >= 0.999 * d["written"]' <<<"$SEEN")"; }
# counted: each frame was seen, or overwritten before the next look at the segment.
counted() { same true "$(json 'd["seen"] + d["missed"] == d["written"]' <<<"$SEEN")"; }

# A ring of 64 bridges pauses of 64 ms. With one frame, every pause of this process of more than a millisecond costs
# one; what that comes to is printed, since it is the machine's, not the module's.
for depth in 1 8 64; do
    wfs=${TAG}wfs$depth
    shm alpha create "$wfs" --shape 64x64 --dtype uint32 --depth "$depth" >/dev/null
    eventually 5 in_registry alpha "$wfs" || fail "$wfs is registered"
    follow "segment, depth $depth" alpha "$wfs" "$wfs"
    check "... each is seen or overwritten" counted
    ((depth < 64)) || check "... at least 99.9 % of $count frames are seen" enough
done
wfs=${TAG}wfs1
follow "segment, spinning" alpha "$wfs" "$wfs" spin=yes
check "... each is seen or overwritten" counted
check "a mirror" get beta alpha "$wfs"
follow "mirror" beta "$(mirror alpha "$wfs")" "$wfs"
check "... each is seen or overwritten" counted
printf '      %-22s %s\n' "... its daemon" "$(mirror_of beta alpha "$wfs" '[m["frames"], m["lost"]]')"

finish
