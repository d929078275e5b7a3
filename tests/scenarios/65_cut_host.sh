#!/bin/bash
# Three clients lose both their networks at the same moment, for 2 s, for 30 s and for longer than an owner waits before
# it evicts a silent client: each says stale within 4 s, and has its stream back soon after its link, in the same file.
# Then a host reboots: its owner, with another address and nothing left in /tmp; and a client.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python
# A client may be silent for 25 s, and that is looked at every 15 s.
EVICTED=45

machines alpha short long evicted
start_daemon alpha
for host in short long evicted; do start_daemon "$host"; done
x=${TAG}x
remote=$(mirror alpha "$x")
make_source() { shm alpha create "$x" --shape 32x32 --dtype uint16 >/dev/null; }
make_source
writer alpha "$x" --rate 100
streams_to alpha "$x" short long evicted
declare -A FILES=()
for host in short long evicted; do
    FILES[$host]=$(inode "$(mirror_file "$host" alpha "$x")")
done
clients_are() { same "$1" "$(status alpha '[sorted(p["clients"]) for p in d["publishers"]]')"; }
check "the owner has three clients" eventually 5 clients_are '[["evicted", "long", "short"]]'

cut() { # cut HOST down|up: both networks
    cut_link "$1" "$2"
    ip -n "dao$$-redis" link set "control-$1" "$2"
}
for host in short long evicted; do cut "$host" down; done
cut_at=$SECONDS
all_stale() { net_is long "$remote" NET_LINK 0 && net_is evicted "$remote" NET_LINK 0; }
back() { # back HOST WHAT
    cut "$1" up
    recovers "$2: the stream is back" 10 flows "$1" "$remote"
    recovers "$2: NET_LINK says live" 2 net_is "$1" "$remote" NET_LINK 1
    check "$2: in the same file" same "${FILES[$1]}" "$(inode "$(mirror_file "$1" alpha "$x")")"
    recovers "$2: its daemon reaches Redis" 6 connected "$1"
}
connected() { same true "$(status "$1" 'd["redis"]["connected"]')"; }
while ((SECONDS - cut_at < 2)); do sleep 0.05; done
back short "cut for 2 s"
recovers "cut for longer: NET_LINK says stale, 4 s after the cut" 4 all_stale
check "... status says so" same false "$(mirror_of long alpha "$x" 'm["connected"]')"

# Meanwhile a client's host reboots: nothing is left of it but what is in Redis.
kill_daemon short
rm -rf "$WORK/short"
start_daemon short
check "a client's host rebooted: get" get short alpha "$x"
recovers "a client's host rebooted: its stream goes" 5 flows short "$remote"

while ((SECONDS - cut_at < 30)); do sleep 0.2; done
back long "cut for 30 s"
evicted() { clients_are '[["long", "short"]]'; }
recovers "cut for longer than a client may be silent: it is evicted" 30 evicted
while ((SECONDS - cut_at < EVICTED)); do sleep 0.2; done
back evicted "cut for $((SECONDS - cut_at)) s, and evicted"
recovers "... it is a client again" 5 clients_are '[["evicted", "long", "short"]]'

# The owner's host reboots: another address on both networks, an empty directory; its programs make the segment again.
kill "$WRITER"
wait "$WRITER" 2>/dev/null
kill_daemon alpha
rm -rf "$WORK/alpha"
old=${ADDRESS[alpha]} new=10.78.2.99
ip -n "dao$$-alpha" address del "$old/24" dev frames
ip -n "dao$$-alpha" address add "$new/24" dev frames
ip -n "dao$$-alpha" address flush dev control
ip -n "dao$$-alpha" address add "$CONTROL_NET.99/24" dev control
ADDRESS[alpha]=$new
start_daemon alpha
make_source
writer alpha "$x" --rate 100
for host in short long evicted; do recovers "the owner's host rebooted with another address: $host has its stream" 15 flows "$host" "$remote"; done
check "... in the same file" same "${FILES[long]}" "$(inode "$(mirror_file long alpha "$x")")"
check "... the registry has the address" same "$new" "$(redis get dao:machines:alpha:ip)"

finish
