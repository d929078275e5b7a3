#!/bin/bash
# Daemons of an ordinary user: they register, stream both ways and make mirrors. A segment of somebody else that they may
# not read is refused in one line, one that they may only read goes one way, and the others are not disturbed.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

[[ $(id -u) == 0 ]] || skip "becoming another user needs root"
command -v setpriv >/dev/null || skip "setpriv is not installed"
own=$DAOSERVER
chmod 755 "$WORK"
cp "$own" "$WORK/daoserver"
DAOSERVER=$WORK/as_nobody
cat >"$DAOSERVER" <<TEXT
#!/bin/sh
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --inh-caps=-all "$WORK/daoserver" "\$@"
TEXT
chmod 755 "$DAOSERVER" "$WORK/daoserver"
"$DAOSERVER" --version >"$WORK/version.log" 2>&1 || skip "another user cannot run it: $(<"$WORK/version.log")"

start_redis
for host in rts gui; do
    mkdir "$WORK/$host"
    chown 65534:65534 "$WORK/$host"
done
start_daemon rts
start_daemon gui
check "they are no root's" same "65534 65534" "$(stat -c '%u %g' "/proc/${DAEMON[rts]}")"
check "the control socket is for that user alone" same "65534 600" "$(stat -c '%u %a' "$WORK/rts/.daoserver-rts.sock")"
main_job gui

# Somebody else's.
"$own" shm create "private$TAG" --shape 4 --dtype int32 --shm-dir "$WORK/rts" >/dev/null
chmod 600 "$WORK/rts/private$TAG.im.shm"
"$own" shm create "public$TAG" --shape 4 --dtype int32 --shm-dir "$WORK/rts" >/dev/null
chmod 644 "$WORK/rts/public$TAG.im.shm"
check "what it may not read is refused" eventually 5 grep -q "private$TAG.im.shm is not served: .*ermission denied" "$WORK/rts.log"
in_status() { at rts status | grep -q "private$TAG.*ermission denied"; }
check "status says so" in_status
check "nobody gets it" fails 3 "No SHM 'private$TAG' registered for host 'rts'." get gui rts "private$TAG"
check "what it may read is registered" eventually 5 in_registry rts "public$TAG"
check "and mirrored" get gui rts "public$TAG"
"$own" shm write "public$TAG" --fill 3 --shm-dir "$WORK/rts" >/dev/null
check "with its frames" eventually 5 has gui "$(mirror rts "public$TAG")" 3
get_both gui rts "public$TAG" >"$WORK/both.log" 2>&1
put gui "$(mirror rts "public$TAG")" 5 >/dev/null
sleep 1
check "but not written" same 3 "$("$own" shm read "public$TAG" --json --shm-dir "$WORK/rts" | json 'd["data"][0]')"
check "which is told once" same 1 "$(grep -c "public$TAG.*ermission denied" "$WORK/rts.log")"
"$own" shm write "public$TAG" --fill 4 --shm-dir "$WORK/rts" >/dev/null
check "its frames go on" eventually 5 has gui "$(mirror rts "public$TAG")" 4
check "so do the others" eventually 5 flows gui "$(mirror rts "wfs$TAG")"
check "it was said once" same 1 "$(grep -c "private$TAG" "$WORK/rts.log")"

check "they stop in order" kill_daemon gui TERM
check "both" kill_daemon rts TERM
finish
