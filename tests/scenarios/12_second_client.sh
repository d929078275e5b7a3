#!/bin/bash
# Two machines mirror one segment. One leaves: the other's stream goes on. The last leaves: the publisher stops.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
start_daemon gamma
x=${TAG}x
shm alpha create "$x" --shape 32x32 --dtype uint16 >/dev/null
writer alpha "$x" --rate 200
eventually 5 in_registry alpha "$x" || fail "the segment is registered"

check "the first client gets it" get beta alpha "$x"
check "the second client gets it" get gamma alpha "$x"
both() { same '["beta", "gamma"]' "$(status alpha 'd["publishers"][0]["clients"]')"; }
check "both stand as clients" eventually 5 both
check "both stand in the records" same '["beta", "gamma"]' \
    "$(registered alpha "$x" connections | json 'sorted(r["client_hostname"] for r in d)')"
port=$(status alpha 'd["publishers"][0]["port"]')
remote=$(mirror alpha "$x")
check "the first stream goes" eventually 5 flows beta "$remote"
check "the second stream goes" eventually 5 flows gamma "$remote"

check "the first client leaves" at beta release alpha "$x"
clients_are() { same "$1" "$(status alpha '[p["clients"] for p in d["publishers"]]')"; }
check "only the second stands as client" eventually 5 clients_are '[["gamma"]]'
check "the second stream goes on" eventually 3 flows gamma "$remote"
check "... on the same port" same "$port" "$(status alpha 'd["publishers"][0]["port"]')"

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
check "the publisher listens" listens
check "the last client leaves" at gamma release alpha "$x"
check "the publisher stops" eventually 5 clients_are '[]'
check "its port is free again" eventually 5 not listens
no_traces() { same 0 "$(redis exists "dao:machines:alpha:shm:$x:connections" "dao:heartbeats:alpha:$x:beta" "dao:heartbeats:alpha:$x:gamma")"; }
check "no record and no heartbeat is left" eventually 5 no_traces
check "somebody new is served again" get beta alpha "$x"
check "... and gets frames" eventually 5 flows beta "$remote"

finish
