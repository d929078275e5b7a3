#!/bin/bash
# Python clients that die silently are evicted; whoever lives keeps the stream, with a record or without. Takes up to a
# minute: a client may be silent for 25 s, and that is looked at every 15 s.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

start_redis
start_daemon alpha
start_daemon beta
both=${TAG}both solo=${TAG}solo only=${TAG}only
for name in "$both" "$solo" "$only"; do
    shm alpha create "$name" --shape 8 --dtype uint32 >/dev/null
    shm alpha write "$name"
done
served() { [[ -n "$(registered alpha "$both" dtype)" && -n "$(registered alpha "$solo" dtype)" && -n "$(registered alpha "$only" dtype)" ]]; }
eventually 5 served || fail "the segments are registered"
# dying asks for all three; quiet finds the record of solo and never asks; beta mirrors both; nobody else has only.
peer dying python_client --owner alpha --check counter \
    --segment "$both:8:uint32" --segment "$solo:8:uint32" --segment "$only:8:uint32"
check "the first client has all three" eventually 10 true_of dying 'all(last("progress", s).get("frames") for s in '"['$both', '$solo', '$only']"')'
check "beta mirrors one of them" get beta alpha "$both"
peer quiet python_client --owner alpha --check counter --segment "$solo:8:uint32" --no-ask
check "the second client has another" eventually 10 true_of quiet 'last("progress")["frames"] == 1'
clients_are() { same "$1" "$(status alpha '{p["shm"][len("'"$TAG"'"):]: p["clients"] for p in d["publishers"]}')"; }
check "who never asked is in no record" clients_are '{"both": ["beta", "dying"], "only": ["dying"], "solo": ["dying"]}'

end_peer dying KILL
check "the dead one is evicted, the living ones stay, and what nobody wants ends" \
    eventually 70 clients_are '{"both": ["beta"], "solo": ["quiet"]}'
shm alpha write "$both"
shm alpha write "$solo"
reads() { same "$1" "$(shm beta read "$(mirror alpha "$both")" --json | json 'd["data"][0]')"; }
check "the mirror still gets frames" eventually 5 reads 2
check "so does the client that never asked" eventually 5 true_of quiet 'last("progress")["number"] == 2'
check "... on the connection it had" true_of quiet 'len([l for l in lines if l["event"] == "connected"]) == 1'
record_of_quiet() { registered alpha "$solo" connections | json '[r["client_hostname"] for r in d]'; }
check "... and a third finds a record" same '["quiet"]' "$(record_of_quiet)"
peer third python_client --owner alpha --check counter --segment "$solo:8:uint32" --no-ask
check "... and its frame" eventually 10 true_of third 'last("progress")["number"] == 2'

# One that leaves in order takes only its heartbeat away, and is evicted like a silent one.
end_peer quiet
check "the stream outlives it" eventually 70 clients_are '{"both": ["beta"], "solo": ["third"]}'
shm alpha write "$solo"
check "... with frames" eventually 5 true_of third 'last("progress")["number"] == 3'

finish
