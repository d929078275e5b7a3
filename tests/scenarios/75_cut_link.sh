#!/bin/bash
# The link between two machines is cut for a while, and both go on writing: the owner's newest frame wins, whatever the
# other wrote meanwhile, and then both directions go on.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

machines alpha beta
start_daemon alpha
start_daemon beta
dm=${TAG}dm
there=$(mirror alpha "$dm")
shm alpha create "$dm" --shape 140 --dtype float32 >/dev/null
put alpha "$dm" 1
eventually 5 in_registry alpha "$dm" || fail "the segment is registered"
check "beta writes back" get_both beta alpha "$dm"
check "the owner listens" eventually 10 linked alpha "$dm" beta
put beta "$there" 2
check "... and has its frame" eventually 5 has alpha "$dm" 2

# What alpha writes is below 1000, what beta writes is above. Looks at alpha's segment all the time.
cat >"$WORK/watch.py" <<'PYTHON'
"""The values that stood in a segment, each once, until the file `stop` is there."""
import array, os, subprocess, sys, time
binary, segment, stop, out = sys.argv[1:]
seen = []
while not os.path.exists(stop):
    data = subprocess.run([binary, "shm", "read", segment, "--raw"], stdout=subprocess.PIPE).stdout
    value = array.array("f", data)[0] if data else None
    if not seen or seen[-1] != value:
        seen.append(value)
        with open(out, "w") as file: print(*seen, file=file)
    time.sleep(0.02)
PYTHON
# cut SECONDS FIRST: the link, while both write: alpha FIRST and up, beta 1000 more.
cut() {
    local value=$2 end=$((SECONDS + $1))
    rm -f "$WORK/stop"
    launch alpha "$WORK/watch.log" python3 "$WORK/watch.py" "$DAOSERVER" "$WORK/alpha/$dm.im.shm" "$WORK/stop" "$WORK/seen"
    local watcher=$LAUNCHED
    cut_link beta down
    while ((SECONDS < end)); do
        put beta "$there" $((value + 1000))
        put alpha "$dm" "$value"
        value=$((value + 1))
        sleep 0.2
    done
    newest=$((value - 1))
    cut_link beta up
    begun=$(date +%s%N)
    if eventually 20 has beta "$there" "$newest"; then
        echo "      $((($(date +%s%N) - begun) / 1000000)) ms after the link came back, beta has alpha's newest frame"
    fi
    sleep 3 # what still waits somewhere on its way arrives
    : >"$WORK/stop"
    wait "$watcher"
    echo "      $newest is alpha's newest; it had: $(tail -c 200 "$WORK/seen")"
    (($(written_by alpha "$dm" beta 'w["refused"].get("stale", 0)') > 0)) && refused=yes
}
refused=no
none_of_beta() { python3 -c 'import sys; late = [v for v in map(float, open(sys.argv[1]).read().split()) if v > 1000]; print(late); sys.exit(bool(late))' "$WORK/seen"; }
again() {
    check "$1: the owner listens again" eventually 20 linked alpha "$dm" beta
    put beta "$there" "$2"
    check "$1: beta's next write arrives" eventually 20 has alpha "$dm" "$2"
    put alpha "$dm" 50
    check "$1: and alpha's" eventually 20 has beta "$there" 50
}
# One that is over before anybody notices, one that is about to be noticed, and a long one.
for seconds in 2 4 8; do
    cut "$seconds" $((100 * seconds))
    check "$seconds s: nothing that beta wrote during the cut reaches alpha" none_of_beta
    check "$seconds s: alpha has its newest frame" has alpha "$dm" "$newest"
    check "$seconds s: and so has beta" has beta "$there" "$newest"
    again "$seconds s" "$seconds"
done
# Whether the kernel sends the writes of a short cut once more before the connection is given up, is its own affair.
for seconds in 2 2 2; do
    [[ $refused == yes ]] && break
    cut "$seconds" 900
    check "once more: nothing that beta wrote during the cut reaches alpha" none_of_beta
    again "once more" "$seconds"
done
check "status of the owner tells of writes that came too late" same yes "$refused"
check "status of the client tells of writes that did not go back" test "$(mirror_of beta alpha "$dm" 'm["written_back"]["stale"]')" -ge 1

finish
