#!/bin/bash
# The shell scripts of scripts/examples, each for real between two daemons: a recording, an alarm, a copied calibration.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon rts
start_daemon gui
examples=$REPOSITORY/scripts/examples
# example HOST SCRIPT WORDS...: as that machine's user runs it.
example() {
    local host=$1 script=$2
    shift 2
    DAOSERVER_FLAGS="--shm-dir $WORK/$host --hostname $host" "$examples/$script" "$@"
}
# hint CODE TEXT COMMAND...: ends with that code, and the text stands among its errors.
hint() {
    local code=$1 text=$2 got
    shift 2
    "$@" >"$WORK/said" 2>&1
    got=$?
    grep -qF -e "$text" "$WORK/said" && ((got == code)) && return
    echo "wanted: exit $code, $text"
    echo "got:    exit $got, $(cat "$WORK/said")"
    return 1
}
mirrored() { [[ "$(status gui "[m['shm'] for m in d['mirrors']]")" == *"\"$1\""* ]]; }

for script in record alarm copy; do
    check "$script --help" hint 0 "Usage: $script " example gui "$script" --help
    check "$script without words: what it takes" hint 2 "it takes " example gui "$script"
    check "$script without the program: what to do" hint 1 "DAOSERVER=PATH" env DAOSERVER=/nonexistent "$examples/$script" a 1 c
done

# Recording. A ring, so that no frame is missed; every pixel is its frame's number.
wfs=${TAG}wfs
shm rts create "$wfs" --shape 8x6 --dtype uint32 --depth 500 >/dev/null
shm rts write "$wfs" --fill 0
eventually 5 in_registry rts "$wfs" || fail "the segment is registered"
writer rts "$wfs" --rate 1000
cat >"$WORK/recorded.py" <<'PYTHON'
"""Do frames, times and description of a recording belong to each other? With a segment's own: no frame is missing."""
import json, struct, sys
file, count, own = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "own"
info = json.load(open(file + ".json"))
assert (info["shape"], info["dtype"]) == ([8, 6], "uint32"), info
data = open(file, "rb").read()
times = [tuple(map(int, line.split())) for line in open(file + ".times")]
assert len(times) == count and len(data) == count * 192, (len(times), len(data))
frames = [struct.unpack("<48I", data[at:at + 192]) for at in range(0, len(data), 192)]
assert all(len(set(frame)) == 1 for frame in frames), "mixed frames"
numbers = [frame[0] for frame in frames]
counters = [counter for counter, _ in times]
if own:
    assert numbers == counters == list(range(numbers[0], numbers[0] + count)), numbers
else: # the mirror counts for itself, and may have been made after others were lost
    assert counters == sorted(set(counters)) and numbers == sorted(set(numbers)), (counters, numbers)
assert all(a[1] <= b[1] for a, b in zip(times, times[1:])), "times go back"
PYTHON
check "record 300 frames here" example rts record "$wfs" 300 "$WORK/here"
check "... each is there, whole, with its time" python3 "$WORK/recorded.py" "$WORK/here" 300 own
check "record 300 frames of another machine" example gui record --from rts "$wfs" 300 "$WORK/there"
check "... they are whole, with their times" python3 "$WORK/recorded.py" "$WORK/there" 300 mirror
check "... its mirror is released" not mirrored "$wfs"
get gui rts "$wfs" >/dev/null
check "record with a mirror that was there" example gui record --from rts "$wfs" 5 "$WORK/there"
check "... it stays" mirrored "$wfs"
at gui release rts "$wfs"
# Signals, to the script alone. What a shell starts in the background would ignore SIGINT for ever.
for ending in INT:130 TERM:143; do
    signal=${ending%:*}
    DAOSERVER_FLAGS="--shm-dir $WORK/gui --hostname gui" env --default-signal=INT \
        "$examples/record" --from rts "$wfs" 1000000 "$WORK/cut.$signal" >"$WORK/cut.log" 2>&1 &
    recorder=$!
    PIDS+=("$recorder")
    eventually 20 test -s "$WORK/cut.$signal.times"
    kill "-$signal" "$recorder"
    wait "$recorder"
    check "record, SIG$signal: its exit code" same "${ending#*:}" $?
    check "... what it has is whole" python3 "$WORK/recorded.py" "$WORK/cut.$signal" "$(wc -l <"$WORK/cut.$signal.times")" mirror
    check "... its mirror is released" not mirrored "$wfs"
done
kill "$WRITER" && wait "$WRITER"
# It would wait for 30 s, as shm read does.
cat >"$WORK/impatient" <<SHELL
#!/bin/sh
case "\$*" in *--wait*) set -- "\$@" --timeout 0.3 ;; esac
exec "$DAOSERVER" "\$@"
SHELL
chmod +x "$WORK/impatient"
silent_read() { DAOSERVER=$WORK/impatient example rts record "$wfs" 3 "$WORK/none"; }
check "record where nothing is written: time-out, what to do" hint 4 "daoserver shm watch" silent_read

# The alarm.
check "alarm --once on a silent stream: exit 4" hint 4 "$wfs: nothing new for 0.3 s" example rts alarm --once "$wfs" 0.3
check "... of another machine" hint 4 "rts $wfs: nothing new for 0.3 s" example gui alarm --once --from rts "$wfs" 0.3
check "... whose mirror is released" not mirrored "$wfs"
check "alarm with a wrong time" hint 2 "SECONDS is 'soon'" example rts alarm "$wfs" soon
# shellcheck disable=SC2016 # the script that is written expands it
printf '#!/bin/sh\necho "$1 $2" >>%s\n' "$WORK/told" >"$WORK/tell" && chmod +x "$WORK/tell"
writer rts "$wfs" --rate 200
DAOSERVER_FLAGS="--shm-dir $WORK/gui --hostname gui" env --default-signal=INT \
    "$examples/alarm" --from rts "$wfs" 3 "$WORK/tell" stream >"$WORK/alarm.log" 2>&1 &
alarm=$!
PIDS+=("$alarm")
check "a stream that runs" eventually 10 flows gui "$(mirror rts "$wfs")"
kill "$WRITER" && wait "$WRITER"
check "its silence is noticed" eventually 20 grep -q "rts $wfs: nothing new for 3 s" "$WORK/alarm.log"
check "... and the command run" eventually 5 grep -qx "stream silent" "$WORK/told"
writer rts "$wfs" --rate 200
check "its end is noticed" eventually 20 grep -q "rts $wfs: back" "$WORK/alarm.log"
check "... and the command run" eventually 5 grep -qx "stream back" "$WORK/told"
kill -INT "$alarm"
wait "$alarm"
check "Ctrl-C: exit 130" same 130 $?
check "... the mirror is released" not mirrored "$wfs"
check "each was said once" same "2 2" "$(wc -l <"$WORK/alarm.log") $(wc -l <"$WORK/told")"
kill "$WRITER" && wait "$WRITER"
gone=${TAG}gone
shm rts create "$gone" --shape 2 --dtype int8 >/dev/null
example rts alarm --once "$gone" 60 >"$WORK/gone.log" 2>&1 &
alarm=$!
PIDS+=("$alarm")
# The brackets: grep must not find itself.
waits() { cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -q "shm rea[d] $gone --wait"; }
check "the alarm waits" eventually 10 waits
shm rts rm "$gone"
wait "$alarm"
check "a segment that goes is no silence of 60 s: exit 4" same 4 $?
check "... and said" grep -q "$gone: cannot be read any more" "$WORK/gone.log"

# Copying.
matrix=${TAG}matrix
head -c $((40 * 30 * 4)) /dev/urandom >"$WORK/matrix"
shm rts create "$matrix" --shape 40x30 --dtype float32 --keyword gain=0.25 --keyword modes=40 --keyword "who=the night crew" >/dev/null
shm rts write "$matrix" --raw "$WORK/matrix"
eventually 5 in_registry rts "$matrix" || fail "the segment is registered"
check "copy a calibration" example gui copy rts "$matrix" "${TAG}local"
shm gui read "${TAG}local" --raw >"$WORK/copied"
check "... it is the same, bit for bit" cmp "$WORK/matrix" "$WORK/copied"
check "... with shape, type and keywords" same \
    '[[40, 30], "float32", [["gain", 0.25], ["modes", 40], ["who", "the night crew"]]]' \
    "$(shm gui info "${TAG}local" --json | json '[d["shape"], d["dtype"], sorted([k["name"], k["value"]] for k in d["keywords"])]')"
check "... the mirror is released" not mirrored "$matrix"
before=$(inode "$WORK/gui/${TAG}local.im.shm")
head -c $((40 * 30 * 4)) /dev/urandom >"$WORK/matrix"
shm rts write "$matrix" --raw "$WORK/matrix"
check "copy over an older one" example gui copy rts "$matrix" "${TAG}local"
shm gui read "${TAG}local" --raw >"$WORK/copied"
check "... the same, bit for bit" cmp "$WORK/matrix" "$WORK/copied"
check "... in the same file" same "$before" "$(inode "$WORK/gui/${TAG}local.im.shm")"
shm gui create "${TAG}other" --shape 3 --dtype int8 >/dev/null
check "copy over one of another shape: refused" hint 1 "remove it first: daoserver shm rm ${TAG}other" example gui copy rts "$matrix" "${TAG}other"
check "... which stays as it was" same 0 "$(counter gui "${TAG}other")"

# What cannot be.
for line in "record --from rts nothing 1 $WORK/x" "alarm --from rts nothing 1" "copy rts nothing x" \
    "record nothing 1 $WORK/x" "alarm nothing 1" "copy nobody nothing x"; do
    read -ra words <<<"$line"
    check "$line: unknown, where to look" hint 3 "daoserver list" example gui "${words[@]}"
done
kill_daemon gui TERM
for line in "record --from rts $wfs 1 $WORK/x" "alarm --from rts $wfs 1" "copy rts $wfs x"; do
    read -ra words <<<"$line"
    check "${words[0]} without a daemon: what to do" hint 8 "start daoserver on this machine" example gui "${words[@]}"
done
check "nothing of the scripts is left" same "" "$(find "$WORK/gui" -name 'remote_*' -o -name x)"

finish
