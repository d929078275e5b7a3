#!/bin/bash
# A Redis user with nothing but the access list in the README, word for word: both roles, both directions, everything
# works, and Redis has refused nothing. With less, one line says what is missing.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=secrets.sh
. "$(dirname "$0")/secrets.sh"
need_python
unset REDISCLI_AUTH

list=$(sed -n 's/^    user dao on >PASSWORD //p' "$REPOSITORY/README.md")
check "the README has an access list" test -n "$list"
start_redis
[[ $(redis acl whoami 2>&1) == default ]] || skip "this Redis knows no access lists (6.0 and later do)"
new_secret
as_user() { echo "acl setuser dao reset on >$(<"$WORK/secret") $*" | redis; }
check "Redis takes it" same OK "$(as_user "$list")"
login=(--redis-username dao --redis-password-file "$WORK/secret")

start_daemon rts "${login[@]}" --role master
start_daemon gui "${login[@]}"
check "without a role it finds the master" same minion "$(redis get dao:machines:gui:role)"
main_job gui
registered_both() { in_registry rts "wfs$TAG" && in_registry rts "dm$TAG"; }
check "list" at gui list "${login[@]}"
clock_known() { [[ $(redis get dao:machines:gui:clock) == \[* ]]; }
check "clocks are compared" eventually 10 clock_known

# What a crash leaves, requests that make no sense, keys of another type.
kill_daemon gui KILL
start_daemon gui "${login[@]}"
check "after a crash the frames are back" eventually 20 flows gui "$(mirror rts "wfs$TAG")"
redis set "dao:connections:rts:wfs$TAG" nonsense >/dev/null
removed() { [[ -z $(redis get "dao:connections:rts:wfs$TAG") ]]; }
check "a request of nonsense is removed" eventually 5 removed
redis lpush "dao:connections:rts:dm$TAG" 1 >/dev/null
check "a key of another type is told of" eventually 10 grep -q "it is a list" "$WORK/rts.log"
redis del "dao:connections:rts:dm$TAG" >/dev/null
redis set dao:machines:old:hostname old >/dev/null
cleaned() { at rts cleanup "${login[@]}" | grep -q old; }
check "the master cleans up" eventually 5 cleaned
redis set dao:machines:old:hostname old >/dev/null
check "and deregisters" at rts deregister old "${login[@]}"
check "a mirror is released" at gui release rts "wfs$TAG"
one_stream() { same 1 "$(status rts 'len(d["publishers"])')"; }
check "and its stream ends" eventually 5 one_stream
redis flushall >/dev/null
check "an emptied Redis is filled again" eventually 10 registered_both
check "the password is in no log, command line, status or answer" hidden rts gui
check "Redis has refused nothing" same "" "$(redis acl log)"
check "and the daemons have not complained" not grep -q NOPERM "$WORK/rts.log" "$WORK/gui.log"

# Less.
check "without its channels" same OK "$(as_user "$list resetchannels")"
echo "client kill user dao" | redis >/dev/null
check "one line says that wake-ups are missing" eventually 10 grep -q "No wake-ups from Redis at .*NOPERM" "$WORK/rts.log"
check "without keys" same OK "$(as_user "$list resetkeys ~other:*")"
check "list says what is missing" fails 7 "user 'dao' lacks a permission (NOPERM" at gui list "${login[@]}"
check "a running daemon says so" eventually 10 grep -q "Cannot connect to Redis at .*NOPERM.*keys" "$WORK/rts.log"
check "without a command" same OK "$(as_user "$list -time")"
kill_daemon gui TERM
check "a daemon does not start, and says which" fails 7 "'time'" at gui "${login[@]}"
check "all permissions back" same OK "$(as_user "$list")"
check "the owner goes on as before" eventually 10 registered_both
check "each was said once" test "$(grep -c NOPERM "$WORK/rts.log")" -le 6
check "it stops in order" kill_daemon rts TERM
check "and its keys are gone" same "" "$(redis keys 'dao:machines:rts:*')"
finish
