#!/bin/bash
# A Redis with a password: daemons and commands have it from a file or from the environment, and it is nowhere to be read.
# Without it, with a wrong one, and when it changes under way, one sentence says what to do.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=secrets.sh
. "$(dirname "$0")/secrets.sh"
need_python
unset REDISCLI_AUTH

start_redis
new_secret
echo "config set requirepass $(<"$WORK/secret")" | redis-cli -p "$REDIS_PORT" >/dev/null
redis() { REDISCLI_AUTH=$(<"$WORK/secret") redis-cli -p "$REDIS_PORT" "$@"; }
file=(--redis-password-file "$WORK/secret")

mkdir "$WORK/rts"
check "list without a password says what to do" fails 7 "it wants a password (NOAUTH): give --redis-password-file" at rts list
check "so does a daemon, and ends" fails 7 "it wants a password (NOAUTH)" at rts
echo wrong >"$WORK/wrong"
chmod 600 "$WORK/wrong"
check "a wrong one is called so" fails 7 "it refuses the password of the default user (WRONGPASS)" \
    at rts list --redis-password-file "$WORK/wrong"
check "so a daemon says" fails 7 "WRONGPASS" at rts --redis-password-file "$WORK/wrong"
check "a user that Redis does not know" fails 7 "it refuses the password of user 'nobody'" \
    at rts list "${file[@]}" --redis-username nobody
check "a password on the command line is no flag, and is not repeated" fails 2 "unknown flag --redis-password" \
    at rts --redis-password hush
check "really not" not grep hush "$WORK/error"
cp "$WORK/secret" "$WORK/open"
chmod 644 "$WORK/open"
at rts list --redis-password-file "$WORK/open" >/dev/null 2>"$WORK/warned"
check "a file that everybody may read is warned of" grep -q "every user of this machine may read it" "$WORK/warned"
check "and one that they may not is not" same "" "$(at rts list "${file[@]}" 2>&1 >/dev/null)"

start_daemon rts "${file[@]}"
REDISCLI_AUTH=$(<"$WORK/secret") start_daemon gui
shm rts create "wfs$TAG" --shape 16 --dtype float32 >/dev/null
writer rts "wfs$TAG" --rate 200
known() { at rts list "${file[@]}" --json | grep -q "wfs$TAG"; }
check "list has the password from a file" eventually 5 known
list_from_environment() { REDISCLI_AUTH=$(<"$WORK/secret") at rts list; }
check "or from the environment" list_from_environment
check "a mirror is made" get gui rts "wfs$TAG"
check "its frames come" eventually 5 flows gui "$(mirror rts "wfs$TAG")"
check "cleanup works as well" at rts cleanup "${file[@]}"

check "the password is in no log, command line, status or answer" hidden rts gui
check "nor in the environment of a daemon that has it from a file" not in_environment rts
check "of one that has it from there, it is, for its own user alone" in_environment gui

# Another password: who is connected is thrown out.
echo "config set requirepass another" | redis >/dev/null
killed() { REDISCLI_AUTH=another redis-cli -p "$REDIS_PORT" client kill type normal; }
check "connections end" killed
check "the owner says so" eventually 10 grep -q "WRONGPASS" "$WORK/rts.log"
in_status() { at rts status --json | grep -q WRONGPASS; }
check "and status does" eventually 5 in_status
check "frames come all the same" eventually 5 flows gui "$(mirror rts "wfs$TAG")"
echo "config set requirepass $(<"$WORK/secret")" | REDISCLI_AUTH=another redis-cli -p "$REDIS_PORT" >/dev/null
check "the old one again: Redis answers" eventually 10 grep -q "Redis answers again" "$WORK/rts.log"
check "said once" same 1 "$(grep -c WRONGPASS "$WORK/rts.log")"
check "still hidden" hidden rts gui
check "the daemon stops in order" kill_daemon rts TERM
check "and its keys are gone" same "" "$(redis keys 'dao:machines:rts:*')"
finish
