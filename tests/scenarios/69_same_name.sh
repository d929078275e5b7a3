#!/bin/bash
# Two machines whose daemons have one host name, and two masters: both say so, nobody hangs, streams of the others go
# on, and all is in order soon after one of them has gone.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python

machines alpha beta twin
start_daemon alpha
start_daemon beta
x=${TAG}x y=${TAG}y
remote=$(mirror alpha "$x")
shm alpha create "$x" --shape 16x16 --dtype uint16 >/dev/null
writer alpha "$x" --rate 100
streams_to alpha "$x" beta
before=$(inode "$(mirror_file beta alpha "$x")")

# Another machine, whose daemon is called alpha as well, with a directory and a segment of its own.
mkdir -p "$WORK/twin"
shm twin create "$y" --shape 4 --dtype uint8 >/dev/null
launch twin "$WORK/twin.log" "$DAOSERVER" --redis-host "$REDIS_IP" --redis-port "$REDIS_PORT" --hostname alpha \
    --shm-dir "$WORK/twin" --advertise-ip "$(address twin)" --base-pub-port "$(free_port)" --transport "${TRANSPORT:-auto}"
TWIN=$LAUNCHED
said() { grep -q "another daemon is registered as 'alpha', from $(address twin)" "$WORK/alpha.log" && grep -q "a daemon is registered as 'alpha', from $(address alpha)" "$WORK/twin.log"; }
recovers "two daemons of one name: both say so" 15 said
check "... not all the time" test "$(grep -c "another daemon is registered" "$WORK/alpha.log")" -le 3
check "... alpha answers" answers alpha 3
check "... beta answers" answers beta 3
check "... both live" kill -0 "$TWIN" "${DAEMON[alpha]}"
kill -TERM "$TWIN"
wait "$TWIN"
check "the second one leaves in order" same 0 $?
ip_is() { same "$(address alpha)" "$(redis get dao:machines:alpha:ip)"; }
recovers "... the first is in the registry, with its address" 5 ip_is
whole() { registered_all alpha "$x" && served alpha "$x" '["beta"]'; }
recovers "... with its segment and its client" 10 whole
recovers "... the stream goes" 10 flows beta "$remote"
check "... in the same file" same "$before" "$(inode "$(mirror_file beta alpha "$x")")"
gone() { not in_registry alpha "$y"; }
recovers "... what the other served is gone" 10 gone

# On one machine the second one is refused.
check "a second one on the same machine is refused" fails 1 "Control socket" timeout 10 "$DAOSERVER" --redis-host "$REDIS_IP" \
    --redis-port "$REDIS_PORT" --hostname alpha --shm-dir "$WORK/alpha"

# Two masters: they clean up twice, and nothing that lives goes.
kill_daemon beta TERM
start_daemon beta --role master
check "a second master says so" grep -q "two masters" "$WORK/beta.log"
for host in alpha beta; do check "two masters: $host cleans up" at "$host" cleanup; done
recovers "two masters: the stream goes" 10 flows beta "$remote"
check "two masters: both are there, with their segment" whole
kill_daemon beta TERM
start_daemon beta
check "one of them comes back as minion" grep -q "as minion" "$WORK/beta.log"
recovers "... its stream goes" 10 flows beta "$remote"

finish
