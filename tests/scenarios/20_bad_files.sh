#!/bin/bash
# Five hundred files that are no segments, of every kind: each is named once with a reason, the good ones are served,
# and nothing dies, not even by a file that is truncated while it is published.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
dir=$WORK/alpha
mkdir -p "$dir"
good=${TAG}good victim=${TAG}victim other=${TAG}other
for name in "$good" "$victim" "$other"; do shm alpha create "$name" --shape 64x64 --dtype uint16 >/dev/null; done
cat >"$WORK/bad.py" <<'PYTHON'
"""Makes the bad files; prints their names, without those that are meant to be waited for (empty ones)."""
import os, random, sys
directory, good = sys.argv[1:]
whole = open(f"{directory}/{good}.im.shm", "rb").read()
random.seed(1)
names = []
def make(kind, number, content):
    name = f"bad_{kind}_{number}.im.shm"
    with open(f"{directory}/{name}", "wb") as file:
        file.write(content)
    names.append(name)
    return f"{directory}/{name}"
for i in range(150): make("garbage", i, random.randbytes(random.choice([1, 100, 4096, 20000])))
for i in range(100): make("truncated", i, whole[: random.randrange(1, len(whole) // 2)])
for i in range(50): make("zeros", i, bytes(random.choice([1, 200, 5000])))
for i in range(50):
    # A good one with a field of nonsense: naxis, sizes, dtype, counts.
    flipped = bytearray(whole)
    flipped[80:140] = random.randbytes(60)
    make("header", i, flipped)
for i in range(20): os.truncate(make("sparse", i, b"\xff" * 300), 1 << 36)
for i in range(20):
    huge = bytearray(whole)
    huge[80:112] = b"\xff" * 32
    os.truncate(make("huge", i, huge), 1 << 34)
for i in range(20): os.mkfifo(f"{directory}/bad_fifo_{i}.im.shm"); names.append(f"bad_fifo_{i}.im.shm")
for i in range(20): os.mkdir(f"{directory}/bad_dir_{i}.im.shm"); names.append(f"bad_dir_{i}.im.shm")
for i in range(20): os.symlink(f"{directory}/{good}.im.shm", f"{directory}/bad_link_{i}.im.shm"); names.append(f"bad_link_{i}.im.shm")
for i in range(10): os.symlink(f"{directory}/nowhere", f"{directory}/bad_dangling_{i}.im.shm"); names.append(f"bad_dangling_{i}.im.shm")
for i in range(40): open(f"{directory}/bad_empty_{i}.im.shm", "w").close()
print("\n".join(names))
PYTHON
python3 "$WORK/bad.py" "$dir" "$good" >"$WORK/names"

start_daemon alpha
start_daemon beta
served() { same "[\"$good\", \"$other\", \"$victim\"]" "$(at beta list --json | json '[s for m in d if m["hostname"] == "alpha" for s in m["shm_segments"] if not s.startswith("bad_header")]')"; }
check "the good ones are registered, and no bad one" eventually 10 served

# Files come and go under the scan for a while.
vanish() {
    local i
    for ((i = 0; i < 300; i++)); do
        head -c 3000 /dev/urandom >"$dir/vanishing_$((i % 7)).im.shm"
        rm -f "$dir/vanishing_$(((i + 3) % 7)).im.shm"
        sleep 0.01
    done
    rm -f "$dir"/vanishing_*
}
check "a good one can be had" get beta alpha "$good"
vanish
writer alpha "$good" --rate 200
check "... and its stream goes, files vanishing meanwhile" eventually 5 flows beta "$(mirror alpha "$good")"

cat >"$WORK/once.py" <<'PYTHON'
"""Each bad file stands exactly once in the log, with a reason."""
import re, sys
names = open(sys.argv[1]).read().split()
lines = [m for m in (re.search(r"(\S+\.im\.shm) is not served: (.*)", line) for line in open(sys.argv[2], errors="replace")) if m]
said = {}
for m in lines: said.setdefault(m[1], []).append(m[2])
served = set(sys.argv[3:])
missing = [n for n in names if n not in said and n[: -len(".im.shm")] not in served]
twice = {n: why for n, why in said.items() if len(why) > 1 and not n.startswith("vanishing")}
mute = [n for n, why in said.items() if not all(w.strip() for w in why)]
print(len(said), "files named;", "missing:", missing[:5], "twice:", list(twice.items())[:3], "without reason:", mute[:5])
sys.exit(bool(missing or twice or mute))
PYTHON
mapfile -t flipped < <(at beta list --json | json '"\n".join(s for m in d for s in m["shm_segments"] if s.startswith("bad_header"))')
# Random fields can happen to make sense: those are segments, then.
once() { python3 "$WORK/once.py" "$WORK/names" "$WORK/alpha.log" "${flipped[@]}"; }
check "each is named once, with a reason" once

rss_kb() { awk '/^VmRSS/ {print $2}' "/proc/${DAEMON[alpha]}/status"; }
rss=$(rss_kb)
echo "      resident memory: $rss kB"
check "the daemon keeps under 50 MB" test "$rss" -lt 51200

check "one more is mirrored" get beta alpha "$victim"
check "... and another" get beta alpha "$other"
writer alpha "$other" --rate 200
check "its stream goes" eventually 5 flows beta "$(mirror alpha "$other")"
# Nobody writes there with a mapping of its own: only the daemon's publisher reads it.
truncate -s 100 "$dir/$victim.im.shm"
check "a file is truncated under its publisher: it is reported" eventually 5 grep -q "$victim.im.shm is not served" "$WORK/alpha.log"
truncate -s 0 "$dir/$victim.im.shm"
check "... the daemon lives" at alpha status
check "... the other stream goes on" eventually 5 flows beta "$(mirror alpha "$other")"
truncate -s 50 "$(mirror_file beta alpha "$other")"
check "a mirror is truncated under its writer: the daemon lives" at beta status
check "... and the mirror is made anew" eventually 10 flows beta "$(mirror alpha "$other")"
shm alpha create "$victim" --shape 64x64 --dtype uint16 >/dev/null
shm alpha write "$victim" --fill 9
check "the truncated one is made again: it is mirrored again" eventually 10 sh -c \
    "'$DAOSERVER' shm read '$(mirror_file beta alpha "$victim")' --raw | head -c 2 | od -An -tu1 | grep -q '^ *9 *0'"

if [[ $(id -u) == 0 ]] && command -v setpriv >/dev/null; then
    # Unreadable means something to a user who is not root only.
    secret=${TAG}secret
    mkdir -p "$WORK/gamma"
    shm gamma create "$secret" --shape 4 --dtype uint8 >/dev/null
    shm gamma create "${TAG}open" --shape 4 --dtype uint8 >/dev/null
    chmod 0 "$WORK/gamma/$secret.im.shm"
    chmod 755 "$WORK"
    chown 65534 "$WORK/gamma" "$WORK/gamma/${TAG}open.im.shm"
    cp "$DAOSERVER" "$WORK/daoserver"
    setpriv --reuid 65534 --regid 65534 --clear-groups "$WORK/daoserver" --redis-host 127.0.0.1 --redis-port "$REDIS_PORT" \
        --hostname gamma --shm-dir "$WORK/gamma" --advertise-ip 127.0.0.1 --base-pub-port "$(free_port)" 2>"$WORK/gamma.log" &
    DAEMON[gamma]=$!
    PIDS+=("$!")
    check "an unreadable file is named with its reason" eventually 10 grep -q "$secret.im.shm is not served: .*ermission" "$WORK/gamma.log"
    open_is_there() { same "uint8" "$(registered gamma "${TAG}open" dtype)"; }
    check "... beside it the readable one is registered" eventually 5 open_is_there
fi

finish
