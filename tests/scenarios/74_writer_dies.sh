#!/bin/bash
# A machine that writes back is killed, then its owner: nothing goes back in time, and it goes on by itself. Takes up to
# a minute: a client may be silent for 25 s, and that is looked at every 15 s.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
start_daemon gamma
dm=${TAG}dm
there=$(mirror alpha "$dm")
shm alpha create "$dm" --shape 140 --dtype float32 >/dev/null
put alpha "$dm" 1
eventually 5 in_registry alpha "$dm" || fail "the segment is registered"
check "beta writes back" get_both beta alpha "$dm"
check "gamma only reads" get gamma alpha "$dm"
check "the owner listens to beta" eventually 10 linked alpha "$dm" beta
put beta "$there" 2
check "... and has its frame" eventually 5 has alpha "$dm" 2
count=$(counter alpha "$dm")

kill_daemon beta
begun=$SECONDS
put beta "$there" 666 # its programs live
unlinked() { same false "$(written_by alpha "$dm" beta 'w["connected"]')"; }
check "client killed: its owner notices" eventually 10 unlinked
check "... and says who wrote last" same beta "$(published alpha "$dm" 'p["last_writer"]')"
check "... and keeps its last frame" same "$count true" "$(counter alpha "$dm") $(has alpha "$dm" 2 && echo true)"
put alpha "$dm" 3
check "... which it writes itself now" eventually 5 has gamma "$there" 3

# Back before it is evicted.
start_daemon beta
check "client restarted: it remembers that it writes back" same true "$(status beta '[m.get("bidirectional", True) for m in d["mirrors"]][0]')"
check "... its owner listens again" eventually 20 linked alpha "$dm" beta
check "... what it has is the owner's, not what was written meanwhile" eventually 5 has beta "$there" 3
check "... and the owner has its own" has alpha "$dm" 3
put beta "$there" 4
check "... what it writes arrives" eventually 5 has alpha "$dm" 4
check "... everywhere" eventually 5 has gamma "$there" 4

kill_daemon alpha
put alpha "$dm" 5
put beta "$there" 667
start_daemon alpha
check "owner killed and restarted: it listens again" eventually 20 linked alpha "$dm" beta
check "... its frame is everywhere" eventually 5 has beta "$there" 5
check "... everywhere" eventually 5 has gamma "$there" 5
check "... and its own" has alpha "$dm" 5
put beta "$there" 6
check "... what beta writes arrives" eventually 5 has alpha "$dm" 6
check "... everywhere" eventually 5 has gamma "$there" 6
put alpha "$dm" 7
check "... what alpha writes arrives" eventually 5 has beta "$there" 7

kill_daemon beta
begun=$SECONDS
evicted() { same '["gamma"] []' "$(published alpha "$dm" 'p["clients"]') $(published alpha "$dm" 'p.get("written_by", [])')"; }
check "client killed for good: it is evicted within 42 s" eventually 42 evicted
echo "      after $((SECONDS - begun)) s"
check "... counted" same 1 "$(status alpha 'd["counters"]["clients_evicted"]')"
check "... the owner has its last frame" has alpha "$dm" 7
put alpha "$dm" 8
check "... and the other client goes on" eventually 5 has gamma "$there" 8
start_daemon beta
check "it comes back later, by itself" eventually 20 linked alpha "$dm" beta
check "... with the owner's frame" eventually 5 has beta "$there" 8
put beta "$there" 9
check "... and writes" eventually 5 has alpha "$dm" 9

finish
