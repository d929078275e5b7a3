#!/bin/bash
# What stands under a mirror's name and is no mirror of ours: links, FIFOs, directories, other people's files and
# semaphores. Each is one clear error, stays as it is, and keeps nobody else from anything. Names out of Redis, the control
# socket and the daemon's memory that would lead elsewhere lead nowhere.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x y=${TAG}y
for name in "$x" "$y"; do
    shm alpha create "$name" --shape 8x8 --dtype uint16 >/dev/null
    eventually 5 in_registry alpha "$name" || fail "$name is registered"
done
check "a stream beside it all" get beta alpha "$y"
writer alpha "$y" --rate 100
place=$(mirror_file beta alpha "$x")
outside=$WORK/outside
mkdir "$outside"
echo "not to be touched" >"$outside/file"
cp "$WORK/alpha/$x.im.shm" "$outside/segment.im.shm"

# What there is of a file, and of what a link leads to; a directory's and a FIFO's kind.
look() { stat -c '%n %F %i %s %Y %u' "$place" "$outside"/* && sha256sum "$outside"/* && if [[ -f $place ]]; then sha256sum <"$place"; fi; }
# foreign WHAT SENTENCE: what stands there is refused with that sentence, and stays.
foreign() {
    local before after logged
    before=$(look)
    logged=$(wc -l <"$WORK/beta.log")
    check "$1: get is refused with one sentence" fails 1 "Mirror $place is not made over a file that is none: $2" \
        at beta get alpha "$x" --timeout 5
    check "... and it is in the log, in one line" same 1 "$(tail -n "+$((logged + 1))" "$WORK/beta.log" | grep -c "is not made over")"
    at beta release alpha "$x" >/dev/null 2>&1
    after=$(look)
    check "... it is as it was, what it leads to as well, and no release takes it away" same "$before" "$after"
    rm -rf "$place"
}
ln -s "$outside/file" "$place" && foreign "a link to a file" "it is a symbolic link"
ln -s "$outside/segment.im.shm" "$place" && foreign "a link to a segment" "it is a symbolic link"
ln -s "$outside/nowhere" "$place" && foreign "a link to nothing" "it is a symbolic link"
check "... nothing was made there" test ! -e "$outside/nowhere"
ln -s "$outside" "$place" && foreign "a link to a directory" "it is a symbolic link"
mkfifo "$place" && foreign "a FIFO" "it is a FIFO"
mkdir "$place" && foreign "a directory" "it is a directory"
echo "my notes" >"$place" && foreign "somebody's notes" "it is no segment of this name"
head -c 20000 /dev/urandom >"$place" && foreign "a file of random bytes" "it is no segment of this name"
cp "$outside/segment.im.shm" "$place" && foreign "a segment of another name, with the mirror's shape" "it is no segment of this name"
ln "$outside/file" "$place" && foreign "a hard link to a file" "it is no segment of this name"
if [[ $(id -u) == 0 ]]; then
    shm beta create "$place" --shape 8x8 --dtype uint16 >/dev/null
    chown 65534 "$place"
    foreign "a segment of another user" "it belongs to another user, 65534"
    rm -f /dev/shm/sem."$(mirror alpha "$x")"_*
else
    echo "skip  a segment of another user: only root can make one"
fi

# Semaphores are the whole machine's.
base=$(mirror alpha "$x")
check "no semaphore was left behind" same "" "$(find /dev/shm -name "sem.$base*")"
before=$(look 2>/dev/null)
for target in "$outside/file" "$outside/nowhere" "$outside"; do
    ln -s "$target" "/dev/shm/sem.${base}_sem04"
    check "a link for a semaphore (to ${target##*/}): refused with one sentence" fails 1 "/dev/shm/sem.${base}_sem04 is a symbolic link" \
        at beta get alpha "$x" --timeout 5
    at beta release alpha "$x" >/dev/null 2>&1
    check "... it stays, nothing else does" same "/dev/shm/sem.${base}_sem04" "$(find /dev/shm -name "sem.$base*")"
    rm "/dev/shm/sem.${base}_sem04"
done
check "... what they lead to is as it was" same "$before" "$(look 2>/dev/null)"
# The name under which a mirror is made, before it gets its own.
for number in {0..60}; do ln -s "$outside/file" "$WORK/beta/.daoserver-${DAEMON[beta]}-$number.new"; done
check "links under the names that a mirror is made under: it is made" get beta alpha "$x"
check "... as a file" test -f "$place" -a ! -L "$place"
check "... and what they lead to is as it was" same "not to be touched" "$(cat "$outside/file")"
rm -f "$WORK/beta/.daoserver-${DAEMON[beta]}"-*.new

# While it runs: somebody puts a link in its place.
rm "$place" && ln -s "$outside/segment.im.shm" "$place"
hash=$(sha256sum "$outside/segment.im.shm")
broken() { [[ $(mirror_of beta alpha "$x" 'm.get("error")') == *"is a symbolic link"* ]]; }
check "a link in the place of a mirror that runs: status says so" eventually 10 broken
shm alpha write "$x" --fill 7
sleep 0.5
check "... and nothing is written through it" same "$hash" "$(sha256sum "$outside/segment.im.shm")"
rm "$place"
there() { shm beta read "$base" --raw | head -c 1 | od -An -tu1 | grep -q '^ *7$'; }
check "... when it is gone the mirror is back" eventually 10 there
truncate -s 60 "$place"
check "a mirror of ours that was cut short is mended" eventually 10 there
at beta release alpha "$x" >/dev/null

# Two streams whose mirrors would have one name: the first keeps it.
redis mset dao:machines:al:hostname al dao:machines:al:ip 127.0.0.1 "dao:machines:al:shm:pha_$x:dimensions" "[8, 8]" \
    "dao:machines:al:shm:pha_$x:dtype" uint16 dao:machines:al.pha:hostname al.pha dao:machines:al.pha:ip 127.0.0.1 \
    "dao:machines:al.pha:shm:$x:dimensions" "[8, 8]" "dao:machines:al.pha:shm:$x:dtype" uint16 >/dev/null
check "get" get beta alpha "$y"
record='[{"server_ip": "127.0.0.1", "port": 9, "transport": "zmq", "client_hostname": "beta", "client_ip": "127.0.0.1", "bidirectional": false, "client_pub_port": null}]'
redis mset "dao:machines:al:shm:pha_$x:connections" "$record" "dao:machines:al.pha:shm:$x:connections" "$record" >/dev/null
check "a mirror of al.pha" get beta al.pha "$x"
redis mset dao:machines:al_pha:hostname al_pha dao:machines:al_pha:ip 127.0.0.1 "dao:machines:al_pha:shm:$x:dimensions" "[8, 8]" \
    "dao:machines:al_pha:shm:$x:dtype" uint16 "dao:machines:al_pha:shm:$x:connections" "$record" >/dev/null
check "one of al_pha, which would have its name" fails 1 "The mirror of '$x' of 'al.pha' has the same file name" at beta get al_pha "$x" --timeout 5
at beta release al_pha "$x" >/dev/null 2>&1
check "... and takes nothing away from it" test -f "$(mirror_file beta al_pha "$x")"
at beta release al.pha "$x" >/dev/null

# Names that lead elsewhere, where no command line could have them: in Redis, over the control socket, in the memory.
listing() { find "$WORK" /tmp /dev/shm -maxdepth 2 \( -name "*evil*" -o -name "*remote_*$TAG*" \) 2>/dev/null | sort; }
before=$(listing)
# shellcheck disable=SC2016 # Lua expands it
redis eval 'for _, name in ipairs({"a\0evil", "a\nevil", "../evil", "/evil", "", ".evil", "a/../../evil", string.rep("evil", 100), "\255evil"}) do
    for _, host in ipairs({"good", name}) do
        redis.call("set", "dao:machines:" .. host .. ":hostname", host)
        redis.call("set", "dao:machines:" .. host .. ":ip", "127.0.0.1")
        redis.call("set", "dao:machines:" .. host .. ":shm:" .. name .. ":dimensions", "[8, 8]")
        redis.call("set", "dao:machines:" .. host .. ":shm:" .. name .. ":dtype", "uint16")
        redis.call("set", "dao:connections:alpha:" .. name, "{}")
        redis.call("set", "dao:heartbeats:alpha:" .. name .. ":" .. name, "now")
    end
end' 0 >/dev/null
check "list has none of them" not sh -c "'$DAOSERVER' list --redis-port $REDIS_PORT --json 2>/dev/null | grep evil"
cat >"$WORK/ask.py" <<'PYTHON'
import json, socket, sys
names = ["a\0evil", "a\nevil", "../evil", "/../evil", "", ".evil", "a/../../evil", "evil" * 100, "\ud800evil", "remote_\0", "..", "\u202eevil\n"]
wrong = []
with socket.socket(socket.AF_UNIX) as peer:
    peer.settimeout(10)
    peer.connect(sys.argv[1])
    lines = peer.makefile("rb")
    for name in names:
        for ask in ({"hostname": "alpha", "shm": name}, {"hostname": name, "shm": sys.argv[2]}):
            for op in ("get_remote_shm", "release_remote_shm"):
                peer.sendall(json.dumps({"id": 1, "op": op, "timeout_s": 1, **ask}).encode() + b"\n")
                answer = json.loads(lines.readline())
                if answer.get("error", {}).get("kind") not in ("ValueError", "KeyError"):
                    wrong.append((op, ask, answer))
print(wrong)
sys.exit(bool(wrong))
PYTHON
check "over the control socket each is a ValueError or a KeyError" python3 "$WORK/ask.py" "$WORK/beta/.daoserver-beta.sock" "$x"
kill_daemon beta TERM
printf '%s' '{"mirrors": [{"hostname": "../evil", "shm": "x"}, {"hostname": "alpha", "shm": "../../evil"}, {"hostname": "alpha", "shm": "a\u0000evil"}, {"hostname": "alpha", "shm": ""}], "ports": {"../evil": 1}}' \
    >"$WORK/beta/.daoserver-beta.sock.memory"
start_daemon beta
check "in its memory: none is believed" same "[]" "$(status beta 'd["mirrors"]')"
check "nothing was written anywhere" same "$(grep -v "$y" <<<"$before")" "$(listing | grep -v "$y")"
check "get after all that" get beta alpha "$x"
check "the stream beside it goes" get beta alpha "$y"
check "... all the time" eventually 5 flows beta "$(mirror alpha "$y")"

finish
