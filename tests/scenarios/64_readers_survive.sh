#!/bin/bash
# A program that has a mirror mapped, and one that waits on its semaphore, go on reading through restarts of either
# daemon and a source that is made again; the mirror's keywords tell live from stale. What a daemon that is gone for
# good has left is removed by the next one of its name: mirrors and their semaphores, never a source.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
remote=$(mirror alpha "$x")
file=$(mirror_file beta alpha "$x")
make_source() { shm alpha create "$x" --shape 16x8 --dtype uint16 --keyword gain=0.5 >/dev/null; }
make_source
writer alpha "$x" --rate 100
streams_to alpha "$x" beta

# Maps the mirror once, and never looks at the file again; prints what it sees as JSON lines, about ten a second.
cat >"$WORK/reader.py" <<'PYTHON'
import ctypes, json, mmap, os, struct, sys, time
path, wide = sys.argv[1], int(sys.argv[2])
with open(path, "r+b") as file:
    view = mmap.mmap(file.fileno(), 0)
size = len(view)
keywords = struct.unpack_from("<H", view, 178)[0]
libc = ctypes.CDLL(None, use_errno=True)
libc.sem_open.restype = ctypes.c_void_p
name = os.path.basename(path).split(".")[0]
semaphore = libc.sem_open(f"/{name}_sem03".encode(), 0)
libc.sem_timedwait.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
posts = 0
parent = os.getppid()
while os.getppid() == parent:
    now = time.time() + 0.1
    if libc.sem_timedwait(semaphore, struct.pack("qq", int(now), int(now % 1 * 1e9))) == 0:
        posts += 1
    # The newest counter of all slots, whatever the depth.
    net = {}
    for place in range(keywords):
        at = size - 120 * (keywords - place)
        text = view[at : at + 16].split(b"\0")[0].decode()
        kind = view[at + 16 : at + 17]
        net[text] = (struct.unpack_from("<q", view, at + 24)[0] if kind == b"L"
            else struct.unpack_from("<d", view, at + 24)[0] if kind == b"D"
            else view[at + 24 : at + 40].split(b"\0")[0].decode())
    depth = struct.unpack_from("<I", view, wide)[0] if wide else 1
    last = struct.unpack_from("<I", view, wide + 4)[0] if wide else 0
    block = wide + 8
    counter = struct.unpack_from("<Q", view, last * block + 152)[0]
    with open(sys.argv[3] + ".new", "w") as out:
        json.dump({"counter": counter, "posts": posts, "net": net, "depth": depth}, out)
    os.rename(sys.argv[3] + ".new", sys.argv[3])
PYTHON
layout=$(shm beta info "$remote" --json | json 'd["layout"]')
check "the mirror is a ring of the layout fifo, as this reader expects" same fifo "$layout"
python3 "$WORK/reader.py" "$file" 4296 "$WORK/seen" 2>"$WORK/reader.log" &
READER=$!
PIDS+=("$READER")
seen() { json "$1" <"$WORK/seen"; }
reads() { # its counter and its semaphore's posts grow
    local before
    before=$(seen '[d["counter"], d["posts"]]') || return 1
    sleep 0.4
    python3 -ISc 'import json, sys; a, b = map(json.loads, sys.argv[1:]); sys.exit(not (b[0] > a[0] and b[1] > a[1]))' \
        "$before" "$(seen '[d["counter"], d["posts"]]')"
}
link_is() { same "$1" "$(seen 'd["net"]["NET_LINK"]')"; }
check "a program that has it mapped reads" eventually 5 reads
check "... the source's keyword and ours" same '[0.5, "alpha"]' "$(seen '[d["net"]["gain"], d["net"]["NET_REPLICA"]]')"
recovers "... it sees the link is live" 3 link_is 1
follows() { (($(seen 'd["net"]["NET_SRC_CNT"]') > 0 && $(seen 'd["net"]["NET_AGE_US"]') >= 0 && $(seen 'd["net"]["NET_AGE_US"]') < 1000000)); }
recovers "... source's counter, and an age below a second" 3 follows
check "... and a time that is now" test "$(seen 'd["net"]["NET_SRC_TIME"] // 10**9')" -gt $(($(date +%s) - 5))
before=$(inode "$file")
count=$(seen 'd["counter"]')

back() { # back WHAT
    recovers "$1: the same mapping is read" 15 reads
    recovers "$1: NET_LINK says live" 3 link_is 1
    check "$1: the same file" same "$before" "$(inode "$file")"
    check "$1: the counter only grew" test "$(seen 'd["counter"]')" -gt "$count"
    check "$1: the reader lives" kill -0 "$READER"
    count=$(seen 'd["counter"]')
}
kill_daemon beta TERM
check "client stopped: NET_LINK says stale at once" eventually 3 link_is 0
start_daemon beta
back "client stopped and started"
kill_daemon beta
start_daemon beta
back "client killed and started"

kill_daemon alpha
recovers "owner killed: NET_LINK says stale" 5 link_is 0
check "... and status" same false "$(mirror_of beta alpha "$x" 'm["connected"]')"
older() { (($(seen 'd["net"]["NET_AGE_US"]') > 3000000)); }
check "... the age grows" eventually 3 older
start_daemon alpha
back "owner killed and started"
kill_daemon alpha TERM
start_daemon alpha
back "owner stopped and started"

kill "$WRITER"
wait "$WRITER" 2>/dev/null
make_source
writer alpha "$x" --rate 100
back "the source made again"
shm alpha rm "$x"
kill "$WRITER"
wait "$WRITER" 2>/dev/null
recovers "the source removed: NET_LINK says stale" 6 link_is 0
make_source
writer alpha "$x" --rate 100
back "the source removed and made again"
kill "$WRITER"
wait "$WRITER" 2>/dev/null
sleep 5
check "a source that nobody writes: the link is live all the same" link_is 1
check "... and the frame old" older

# Gone for good: killed, and what it remembers with it, as after a new installation.
y=${TAG}y own=${TAG}own
shm beta create "$own" --shape 4 --dtype uint8 >/dev/null
shm alpha create "$y" --shape 4 --dtype uint8 >/dev/null
eventually 5 in_registry alpha "$y"
check "a second mirror" get beta alpha "$y"
kill_daemon beta
rm "$WORK/beta/.daoserver-beta.sock.memory"
# What is none of ours: another program's mirror, and one that another daemon keeps.
shm beta create remote_other_thing --shape 4 --dtype uint8 >/dev/null
semaphores() { find /dev/shm -maxdepth 1 -name "sem.$1_sem*" | wc -l; }
check "before: the semaphores of the mirror" same 11 "$(semaphores "$remote")"
touch -d '1 minute ago' "$WORK/beta/.daoserver-4294967295-0.new"
start_daemon beta
gone() { test ! -e "$file" && test ! -e "$(mirror_file beta alpha "$y")"; }
check "the next of its name removes its mirrors" eventually 3 gone
check "... with their semaphores" same "0 0" "$(semaphores "$remote") $(semaphores "$(mirror alpha "$y")")"
check "... and a mirror that it was killed over" test ! -e "$WORK/beta/.daoserver-4294967295-0.new"
check "... says so" grep -q "$remote.im.shm is removed" "$WORK/beta.log"
check "... no source" same "11 11" "$(semaphores "$own") $(test -e "$WORK/alpha/$x.im.shm" && semaphores "$x")"
check "... nor another program's mirror" test -e "$WORK/beta/remote_other_thing.im.shm"
shm beta rm remote_other_thing
check "who has it mapped keeps the last frame" kill -0 "$READER"
check "a daemon of another name" get beta alpha "$y"
kill_daemon beta
rm "$WORK/beta/.daoserver-beta.sock.memory"
mkdir -p "$WORK/gamma"
mv "$WORK/beta/remote_alpha_$y.im.shm" "$WORK/gamma/"
start_daemon gamma
check "... leaves it" test -e "$WORK/gamma/remote_alpha_$y.im.shm"

finish
