#!/bin/bash
# A client that goes silent is evicted, and its publisher stops; one that is alive stays. Takes up to a minute: a
# client may be silent for 25 s, and that is looked at every 15 s.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
start_daemon gamma
one=${TAG}one both=${TAG}both
shm alpha create "$one" --shape 8 --dtype float32 >/dev/null
shm alpha create "$both" --shape 8 --dtype float32 >/dev/null
sees_segments() { at beta list --json | grep -q "\"$one\"" && at beta list --json | grep -q "\"$both\""; }
eventually 5 sees_segments
check "beta mirrors both" get beta alpha "$one"
check "... the second" get beta alpha "$both"
check "gamma mirrors one of them" get gamma alpha "$both"
clients_are() { same "$1" "$(status alpha '{p["shm"][len("'"$TAG"'"):]: p["clients"] for p in d["publishers"]}')"; }
check "all stand as clients" eventually 5 clients_are '{"both": ["beta", "gamma"], "one": ["beta"]}'

kill_daemon beta
check "the silent client is evicted everywhere, the living one stays" eventually 60 clients_are '{"both": ["gamma"]}'
check "the publisher without clients has no record" same 0 "$(redis exists "dao:machines:alpha:shm:$one:connections")"
check "the other's record is the living client's" same '["gamma"]' \
    "$(registered alpha "$both" connections | json '[r["client_hostname"] for r in d]')"
check "the log says so" grep -q "beta is silent and is no client of '$one' any more" "$WORK/alpha.log"
shm alpha write "$both" --fill 4
check "the living client still gets frames" eventually 5 sh -c \
    "'$DAOSERVER' shm read '$(mirror_file gamma alpha "$both")' --json | grep -q '4.0'"

start_daemon beta
check "the silent client comes back: both its streams as well" \
    eventually 15 clients_are '{"both": ["beta", "gamma"], "one": ["beta"]}'
shm alpha write "$one" --fill 5
check "... with frames" eventually 5 sh -c "'$DAOSERVER' shm read '$(mirror_file beta alpha "$one")' --json | grep -q '5.0'"

finish
