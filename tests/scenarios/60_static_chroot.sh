#!/bin/bash
# The one static file, in a root directory that holds nothing but it, /etc/hosts, /dev/shm and /tmp: it resolves a host
# name that stands only there, opens named semaphores, owns a segment and mirrors one, together with an ordinary daemon
# outside. Then the main job again, with the static file on both sides.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

static=${DAOSERVER_STATIC:-$(dirname "$0")/../../target-static/daoserver}
[[ -x $static ]] || skip "there is no static binary: scripts/build-static makes it"
static=$(realpath "$static")
[[ $(id -u) == 0 ]] || skip "a chroot needs root"
unshare --mount true 2>/dev/null || skip "no private mount namespace can be made"

start_redis
root=$WORK/root
mkdir -p "$root/etc" "$root/dev/shm" "$root/tmp"
cp "$static" "$root/daoserver"
printf '127.0.0.1 only-in-this-file\n' >"$root/etc/hosts"

# In a mount namespace of its own, so that nothing is left mounted: /dev/shm there is a tmpfs.
base=$(free_port)
# shellcheck disable=SC2016 # the inner shell expands it
unshare --mount sh -c 'mount -t tmpfs tmpfs "$0/dev/shm" && exec chroot "$0" /daoserver "$@"' "$root" \
    --redis-host only-in-this-file --redis-port "$REDIS_PORT" --hostname jail --shm-dir /tmp --base-pub-port "$base" \
    2>"$WORK/jail.log" &
DAEMON[jail]=$!
PIDS+=("$!")
check "it starts, by a name that stands only in its /etc/hosts" eventually 10 is_ready jail
# inside COMMAND...: another static daoserver in the same root and namespace.
inside() { nsenter --mount="/proc/${DAEMON[jail]}/ns/mnt" --root="/proc/${DAEMON[jail]}/root" /daoserver "$@"; }
ask_inside() { inside "$@" --redis-host only-in-this-file --redis-port "$REDIS_PORT" --hostname jail; }

check "there is nothing else in its root" same "/daoserver /dev /dev/shm /etc /etc/hosts /tmp" \
    "$(cd "$root" && find . -mindepth 1 -not -path './tmp/*' | sed 's/^\.//' | sort | xargs)"

start_daemon outside
here=${TAG}here there=${TAG}there
shm outside create "$here" --shape 64x64 --dtype uint16 >/dev/null
check "shm create inside" inside shm create "$there" --shape 140 --dtype float32
sees_both() { at outside list --json | grep -q "\"$there\"" && at outside list --json | grep -q "\"$here\""; }
check "both segments are in the registry" eventually 5 sees_both

# As client.
head -c 8192 /dev/urandom >"$WORK/frame"
shm outside write "$here" --raw "$WORK/frame"
check "get inside" ask_inside get outside "$here"
shm outside write "$here" --raw "$WORK/frame"
arrived_inside() { inside shm read "remote_outside_$here" --raw | cmp -s - "$WORK/frame"; }
check "a frame from outside arrives, bit for bit" eventually 5 arrived_inside
check "it has opened named semaphores" same 10 "$(inside shm info "remote_outside_$here" --json | json 'd["semaphores"]')"
check "... in its own /dev/shm, not in this machine's" same 0 "$(find /dev/shm -name "sem.remote_outside_$here*" | wc -l)"

# As owner.
check "get outside" get outside jail "$there"
inside shm write "$there" --fill 2.5
arrived_outside() { shm outside read "$(mirror jail "$there")" --json | grep -q '2.5,2.5'; }
check "a frame from inside arrives" eventually 5 arrived_outside
inside shm write "$there" --rate 500 --count 1000 &
PIDS+=("$!")
check "its stream goes" eventually 5 flows outside "$(mirror jail "$there")"

check "status inside" ask_inside status --json
check "release inside" ask_inside release outside "$here"
kill "${DAEMON[jail]}"
wait "${DAEMON[jail]}"
check "SIGTERM: exit 0" same 0 $?
check "... its keys are gone" same "" "$(redis --scan --pattern 'dao:machines:jail:*')"
check "nothing is left mounted" not grep -q "$root" /proc/mounts

# A process of its own: the scenario cleans up after itself.
DAOSERVER=$static bash "$(dirname "$0")/10_two_machines.sh" >"$WORK/main_job.out" 2>&1
check "the main job with the static file (10_two_machines)" same 0 $?
grep -A 4 '^FAIL' "$WORK/main_job.out"

finish
