#!/bin/bash
# The disk of a client's mirrors is full, then its /dev/shm: what cannot be made is refused with the reason, what there
# is goes on, and it comes by itself when there is room. The disk of an owner is full: it serves what it has.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python

machines alpha beta
# Each directory is a disk of 4 MB, which only that machine sees, and so is its /dev/shm.
for host in alpha beta; do
    mkdir -p "$WORK/$host"
    on "$host" mount -t tmpfs -o size=4m none "$WORK/$host" || skip "no tmpfs can be mounted"
    on "$host" mount -o remount,size=1m /dev/shm || skip "/dev/shm cannot be made small"
done
start_daemon alpha
start_daemon beta
x=${TAG}x big=${TAG}big y=${TAG}y z=${TAG}z
remote=$(mirror alpha "$x")
shm alpha create "$x" --shape 16x16 --dtype uint16 >/dev/null
shm alpha create "$big" --shape 512x512 --dtype uint16 >/dev/null
for name in "$y" "$z"; do shm alpha create "$name" --shape 16 --dtype uint16 >/dev/null; done
writer alpha "$x" --rate 100
eventually 5 in_registry alpha "$z" || fail "the others are registered"
streams_to alpha "$x" beta
fill() { on "$1" sh -c "cat /dev/zero >'$2' 2>/dev/null"; true; }

fill beta "$WORK/beta/ballast"
check "the client's disk is full: a mirror is refused, with the reason" fails 1 "No space left on device" at beta get alpha "$big" --timeout 5
check "... the stream goes on" flows beta "$remote"
check "... the daemon answers" answers beta 3
check "... nothing half made stays" same "" "$(on beta find "$WORK/beta" -name '*.new')"
on beta rm "$WORK/beta/ballast"
recovers "there is room again: the mirror can be had" 10 get beta alpha "$big"
at beta release alpha "$big"

# One that was asked for while there was room is made anew when there is room again.
check "get of a large one" get beta alpha "$big"
on beta rm "$WORK/beta/remote_alpha_$big.im.shm"
fill beta "$WORK/beta/ballast"
failed() { status beta "[m for m in d['mirrors'] if m['shm'] == '$big']" | grep -q "No space left"; }
recovers "a mirror is removed while the disk is full: status says why it is not there" 15 failed
on beta rm "$WORK/beta/ballast"
shm alpha write "$big" --fill 9
back() { shm beta info "$(mirror alpha "$big")" && same true "$(mirror_of beta alpha "$big" 'm["connected"]')"; }
recovers "... and it is there soon after there is room" 10 back

fill beta /dev/shm/ballast
check "/dev/shm is full: a mirror is refused, with the reason" fails 1 "semaphores" at beta get alpha "$y" --timeout 5
check "... the stream goes on" flows beta "$remote"
check "... nothing of it stays in /dev/shm" same "" "$(on beta find /dev/shm -name "sem.*$y*")"
on beta rm /dev/shm/ballast
recovers "there is room again: the mirror can be had" 10 get beta alpha "$y"

fill alpha "$WORK/alpha/ballast"
check "the owner's disk is full: a segment cannot be made, and that is said" fails 1 "No space left on device" shm alpha create "${TAG}more" --shape 64x64 --dtype float32
check "... the daemon answers" answers alpha 3
check "... the stream goes on" flows beta "$remote"
recovers "... a mirror of what it has can be had" 10 get beta alpha "$z"
check "... it says that it will not remember" eventually 5 grep -q "cannot be written.*No space left" "$WORK/alpha.log"
kill_daemon alpha
start_daemon alpha
recovers "... killed and started on a full disk: the stream is back" 15 flows beta "$remote"
on alpha rm "$WORK/alpha/ballast"
shm alpha create "${TAG}more" --shape 64x64 --dtype float32 >/dev/null
recovers "there is room again: a new segment is registered" 5 in_registry alpha "${TAG}more"
for host in alpha beta; do check "$host is as it was" answers "$host" 3; done

finish
