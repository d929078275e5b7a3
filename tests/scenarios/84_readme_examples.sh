#!/bin/bash
# The README's examples, each as it is written there, on machines like those of its quick start: Redis at 192.168.64.2,
# the owner rts with a segment wfs that is written a thousand times a second and a dm, and the client gui, where it runs.
# An example is the code below a line `<!-- example: KIND -->`, KIND one of shell and socket (run by bash), python, and
# `rust tests/examples/NAME.rs`, the file that it is equal to but for the first lines there.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

cat >"$WORK/extract.py" <<'PYTHON'
"""Each example of the README as a file of its own, NUMBER.KIND, and a line: NUMBER KIND FILE LINES."""
import re, sys, textwrap
lines = open(sys.argv[1]).read().split("\n")
number = 0
for at, line in enumerate(lines):
    found = re.fullmatch(r"<!-- example: (\w+)(?: (\S+))? -->", line)
    if not found: continue
    at += 1
    while not lines[at].strip(): at += 1
    code = []
    if lines[at].startswith("```"):
        end = lines.index("```", at + 1)
        code = lines[at + 1:end]
    else:
        while lines[at].startswith("    ") or not lines[at].strip():
            code.append(lines[at])
            at += 1
        code = textwrap.dedent("\n".join(code)).strip("\n").split("\n")
    number += 1
    with open(f"{sys.argv[2]}/{number}.{found[1]}", "w") as file: file.write("\n".join(code) + "\n")
    print(number, found[1], found[2] or "-", len(code) if code != [""] else 0)
PYTHON
mkdir "$WORK/examples"
check "the README's examples can be told apart" python3 "$WORK/extract.py" "$REPOSITORY/README.md" "$WORK/examples"
python3 "$WORK/extract.py" "$REPOSITORY/README.md" "$WORK/examples" >"$WORK/found"

CONTROL_NET=192.168.64 REDIS_NUMBER=2 OWN_TMP=yes
machines rts gui
# By the name that users have for it.
mkdir "$WORK/bin"
ln -s "$DAOSERVER" "$WORK/bin/daoserver"
export PATH=$WORK/bin:$PATH
runs() { grep -q "^daoserver running on '$1' (192.168.64.[34]) as " "$WORK/$1.log"; }
for host in rts gui; do
    launch "$host" "$WORK/$host.log" daoserver --redis-host 192.168.64.2
    check "the daemon of $host, as the README starts it" eventually 10 runs "$host"
done
on rts daoserver shm create wfs --shape 64x64 --dtype uint16 >/dev/null
on rts daoserver shm create dm --shape 140 --dtype float32 >/dev/null
launch rts "$WORK/writer.log" daoserver shm write wfs --rate 1000
known() { on gui daoserver list --redis-host 192.168.64.2 --json | grep -q '"dm","wfs"'; }
check "its segments are known" eventually 10 known
check "a machine's /tmp is its own" not test -e /tmp/wfs.im.shm

# run COMMAND...: on gui, in an empty directory of its own; it ends with 0, and prints what its text has a print for.
run() {
    rm -rf "$WORK/here" && mkdir "$WORK/here"
    # shellcheck disable=SC2016 # the inner shell expands it
    on gui timeout 60 bash -c 'cd "$0" && exec "$@"' "$WORK/here" "$@" >"$WORK/printed" 2>"$WORK/complained"
    local ended=$?
    ((ended == 0)) && { [[ -s $WORK/printed ]] || ! grep -q print "$code"; } && return
    echo "exit $ended; it printed:"
    tail -n 20 "$WORK/printed" "$WORK/complained"
    return 1
}
built() { # built NAME: the example's program
    local folder
    for folder in "${CARGO_TARGET_DIR:-$REPOSITORY/target}"/{debug,release}/examples; do
        [[ -x $folder/$1 ]] && echo "$folder/$1" && return
    done
}
released() { same '[]' "$(on gui daoserver status --json | json '[m["shm"] for m in d["mirrors"]]')"; }
written() { on rts daoserver shm read dm --json | json "abs(d['data'][139] - $1) < 1e-6 or exit(1)"; }
declare -A met=()
while read -r number kind file lines; do
    met[$kind]=yes
    code=$WORK/examples/$number.$kind
    what="example $number, $kind"
    check "$what: one to ten lines" test "$lines" -ge 1 -a "$lines" -le 10
    case $kind in
    shell | socket) check "$what: runs as written" run bash -eu "$code" ;;
    python)
        if ! "${DAOSERVER_PYTHON:-python3}" -c 'import numpy' 2>/dev/null; then
            echo "skipped: $what: no Python with numpy (scripts/test makes one in target/venv)"
            continue
        fi
        check "$what: runs as written" run env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$REPOSITORY/scripts" \
            "${DAOSERVER_PYTHON:-python3}" "$code"
        ;;
    rust)
        # Its first lines, up to an empty one, are for the compiler.
        sed '1,/^$/d' "$REPOSITORY/$file" >"$WORK/file.rs"
        check "$what: is $file" cmp "$code" "$WORK/file.rs"
        program=$(built "$(basename "$file" .rs)")
        if [[ -n $program ]]; then
            check "$what: runs" run "$program"
        else
            fail "$what: cargo test, or cargo build --examples, has not built it"
        fi
        ;;
    *) fail "$what: nothing runs that" ;;
    esac
    check "$what: leaves no mirror" eventually 5 released
    if grep -qw dm "$code"; then
        check "$what: what it wrote is in the owner's segment" written 0.01
        on rts daoserver shm write dm --fill 0
    fi
    [[ $kind == shell ]] || continue
    # The one that prints a frame's rows and records.
    check "$what: the rows of a whole frame" same "1 64" "$(awk 'NR == 1 {for (i = 2; i <= NF; i++) n[$i]++; print length(n), NF - 1}' "$WORK/printed")"
    check "$what: 500 frames with their times" same "$((500 * 64 * 64 * 2)) 500" "$(stat -c %s "$WORK/here/frames") $(wc -l <"$WORK/here/times")"
done <"$WORK/found"
for kind in shell socket python rust; do
    [[ -n ${met[$kind]:-} ]] || echo "skipped: README.md has no example of the kind $kind"
done
check "there is one for the shell" same yes "${met[shell]:-no}"

finish
