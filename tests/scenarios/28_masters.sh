#!/bin/bash
# Roles: the first machine is master, the second minion; of two that start at the same moment exactly one is master;
# only a master removes other machines, the dead ones with all their keys and the living ones not at all.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
check "the first is master" grep -q "running on 'alpha' (127.0.0.1) as master" "$WORK/alpha.log"
check "... and says why" grep -q "no live master" "$WORK/alpha.log"
start_daemon beta
check "the second is minion" grep -q "running on 'beta' (127.0.0.1) as minion" "$WORK/beta.log"
check "the registry says so" same "master minion" "$(redis get dao:machines:alpha:role) $(redis get dao:machines:beta:role)"

check "a minion may not deregister others" fails 6 "Only master may deregister other machines." at beta deregister alpha
check "a minion may not clean up" fails 6 "Only master may" at beta cleanup
check "nothing is gone" same alpha "$(redis get dao:machines:alpha:hostname)"

# A machine that died long ago, with all that it left; a living one; one whose time makes no sense.
died="2020-01-01T00:00:00+00:00"
redis mset dao:machines:dead:hostname dead dao:machines:dead:ip 10.0.0.9 dao:machines:dead:role minion \
    dao:machines:dead:last_connect "$died" dao:machines:dead:shm:wfs:dimensions "[4]" dao:machines:dead:shm:wfs:dtype uint8 \
    dao:machines:dead:shm:wfs:connections "[]" dao:connections:dead:wfs "{}" dao:heartbeats:dead:wfs:alpha "$died" >/dev/null
# Of a similar name, alive: a glob or a prefix must not take it.
for host in dead2 "dea" "de*"; do
    redis mset "dao:machines:$host:hostname" "$host" "dao:machines:$host:last_connect" "$(date -u +%Y-%m-%dT%H:%M:%S.%6N+00:00)" >/dev/null
done
check "cleanup" at alpha cleanup --ttl 60
keys_of() { redis --scan --pattern "dao:*:$1:*" | sort; }
check "... the dead one's keys are gone, of all three kinds" same "" "$(keys_of dead)"
check "... the living ones' are not" same "alpha beta dead2 dea" \
    "$(redis mget dao:machines:alpha:hostname dao:machines:beta:hostname dao:machines:dead2:hostname dao:machines:dea:hostname | xargs)"
redis mset dao:machines:gone:hostname gone dao:connections:gone:x "{}" dao:heartbeats:gone:x:y 1 >/dev/null
check "deregister" at alpha deregister gone
check "... its keys are gone, of all three kinds" same "" "$(keys_of gone)"
check "deregister of an unknown one: exit 3" fails 3 "No machine 'gone' registered in Redis." at alpha deregister gone
check "a machine that is deregistered while it lives comes back" at alpha deregister beta
beta_is_back() { same beta "$(redis get dao:machines:beta:hostname)"; }
check "... within 5 s" eventually 5 beta_is_back

# The master is stopped and another machine starts: it takes the role over. The old one comes back as minion.
kill_daemon alpha TERM
start_daemon gamma
check "the master has left: the next to start is master" grep -q "as master" "$WORK/gamma.log"
start_daemon alpha
check "the old master comes back as minion" grep -q "as minion" "$WORK/alpha.log"
kill_daemon gamma
start_daemon gamma
check "a master that was killed comes back as master" grep -q "as master" "$WORK/gamma.log"
start_daemon delta --role master
check "a second master by flag: a warning" grep -q "two masters" "$WORK/delta.log"
for host in alpha beta gamma delta; do kill_daemon "$host" TERM; done

# Two at the same moment, several times.
for round in 1 2 3 4 5 6; do
    redis flushall >/dev/null
    launch_daemon one
    launch_daemon two
    eventually 10 is_ready one
    eventually 10 is_ready two
    check "two at the same moment: one master ($round)" same "master minion" \
        "$(grep -ho "as \(master\|minion\)" "$WORK/one.log" "$WORK/two.log" | sed 's/as //' | sort | xargs)"
    kill_daemon one TERM
    kill_daemon two TERM
done
check "all have left" same "" "$(redis --scan --pattern 'dao:machines:*')"

finish
