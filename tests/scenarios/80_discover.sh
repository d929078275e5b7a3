#!/bin/bash
# A scan of the local subnets, inside namespaces made for it: two real Redis servers, one of a cluster, and hosts
# whose port says nothing, garbage, or garbage without end. Never scans a network of this machine.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

[[ $(id -u) == 0 ]] || skip "network namespaces need root"
command -v ip >/dev/null || skip "ip (iproute2) is not installed"
command -v python3 >/dev/null || skip "python3 is not installed"
command -v redis-server >/dev/null || skip "redis-server is not installed"

ns=dao$$
hosts=(scan dao plain odd)
make_namespace() {
    ip netns add "$ns-$1" 2>"$WORK/ip.log" || skip "no network namespace: $(cat "$WORK/ip.log")"
    UNDO+=("ip netns del $ns-$1")
    ip -n "$ns-$1" link set lo up
}
in_ns() {
    local name=$1
    shift
    ip netns exec "$ns-$name" "$@"
}

# Alone, without an interface but the loopback.
make_namespace alone
none="No Redis instances found on local subnets."
check "no interface: says so" same "$none" "$(in_ns alone "$DAOSERVER" discover)"
check "no interface: exit 0" in_ns alone "$DAOSERVER" --discover
check "no interface: JSON" same "[]" "$(in_ns alone "$DAOSERVER" discover --json)"

# One bridge, in a namespace of its own, with all hosts on it.
make_namespace bridge
ip -n "$ns-bridge" link add br0 type bridge 2>"$WORK/ip.log" || skip "no bridge: $(cat "$WORK/ip.log")"
ip -n "$ns-bridge" link set br0 up
number=1
for name in "${hosts[@]}"; do
    make_namespace "$name"
    ip -n "$ns-bridge" link add "v-$name" type veth peer name eth0 netns "$ns-$name"
    ip -n "$ns-bridge" link set "v-$name" master br0 up
    # A wide mask: only the /24 around the address is scanned.
    ip -n "$ns-$name" address add "10.77.5.$number/16" dev eth0
    ip -n "$ns-$name" link set eth0 up
    number=$((number + 1))
done
# The odd host has several addresses, and one outside the /24 where a Redis must not be found.
for last in 10 11 12; do ip -n "$ns-odd" address add "10.77.5.$last/16" dev eth0; done
ip -n "$ns-plain" address add 10.77.6.3/16 dev eth0

redis() { # redis NAMESPACE ADDRESSES...
    local name=$1
    shift
    mkdir -p "$WORK/$name"
    # Not by in_ns: the process must be the one that $! names, so that it is stopped.
    ip netns exec "$ns-$name" redis-server --port 6379 --bind "$@" --protected-mode no --save "" \
        --appendonly no --dir "$WORK/$name" >"$WORK/$name.log" 2>&1 &
    PIDS+=("$!")
    eventually 5 in_ns "$name" redis-cli -h "$1" ping || fail "the Redis of $name starts"
}
redis dao 10.77.5.2
redis plain 10.77.5.3 10.77.6.3
# Its own address is scanned too.
redis scan 10.77.5.1
in_ns scan redis-cli -h 10.77.5.1 config set requirepass hush >/dev/null

for host in rts-machine daovm; do
    in_ns dao redis-cli -h 10.77.5.2 set "dao:machines:$host:hostname" "$host" >/dev/null
done
in_ns dao redis-cli -h 10.77.5.2 set "dao:machines:daovm:shm:x:hostname" no-machine >/dev/null
in_ns dao redis-cli -h 10.77.5.2 set "dao:machines:../evil:hostname" no-machine >/dev/null
in_ns dao redis-cli -h 10.77.5.2 eval 'for i = 1, 5000 do redis.call("set", "k" .. i, i) end' 0 >/dev/null

cat >"$WORK/odd.py" <<'PYTHON'
"""Three listeners: garbage, silence, garbage without end."""
import socket, sys, threading

def serve(address, answer):
    listener = socket.create_server((address, 6379))
    def run():
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=answer, args=(peer,), daemon=True).start()
    threading.Thread(target=run, daemon=True).start()

def garbage(peer):
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    peer.close()

def endless(peer):
    try:
        while True:
            peer.sendall(b"x" * 65536)
    except OSError:
        pass

kept = []
serve("10.77.5.10", garbage)
serve("10.77.5.11", kept.append)
serve("10.77.5.12", endless)
open(sys.argv[1], "w").close()
threading.Event().wait()
PYTHON
ip netns exec "$ns-odd" python3 "$WORK/odd.py" "$WORK/odd.ready" &
PIDS+=("$!")
eventually 5 test -e "$WORK/odd.ready" || fail "the odd listeners start"

wanted='Found 3 Redis instance(s):
  10.77.5.1:6379        machines: —
  10.77.5.2:6379 [dao]  machines: daovm, rts-machine
  10.77.5.3:6379        machines: —'
check "--discover: text" same "$wanted" "$(in_ns scan "$DAOSERVER" --discover)"
check "discover: text" same "$wanted" "$(in_ns scan "$DAOSERVER" discover --workers 254 --timeout 0.5)"
check "discover: few workers find the same" \
    same "$wanted" "$(in_ns scan "$DAOSERVER" discover --workers 32)"
cat >"$WORK/check.py" <<'PYTHON'
import json, sys
found = json.load(open(sys.argv[1]))
assert [f["host"] for f in found] == ["10.77.5.1", "10.77.5.2", "10.77.5.3"], found
assert [f["dao"] for f in found] == [False, True, False], found
one = {"host": "10.77.5.2", "port": 6379, "dao": True, "machines": ["daovm", "rts-machine"]}
assert found[1] == one, found
PYTHON
in_ns scan "$DAOSERVER" discover --json >"$WORK/found.json"
check "discover: JSON" python3 "$WORK/check.py" "$WORK/found.json"

# Over the control protocol: while one scan is under way another is refused, and nothing else waits.
ask() { # ask LINES...: of a daemon in the namespace, over its standard input and output
    mkdir -p "$WORK/asked"
    printf '%s\n' "$@" | in_ns scan "$DAOSERVER" --stdio --redis-host 10.77.5.3 --hostname asked --shm-dir "$WORK/asked" \
        --advertise-ip 10.77.5.1 --log-level error
}
ask '{"id": 1, "op": "discover", "port": 6379, "timeout": 0.3, "max_workers": 64}' '{"id": 2, "op": "ping"}' >"$WORK/answers"
check "the operation: its answer comes after that of a quick one" \
    same "2 1" "$(python3 -c 'import json, sys; print(*[json.loads(line)["id"] for line in sys.stdin])' <"$WORK/answers")"
tail -n 1 "$WORK/answers" | json 'd["ok"]' >"$WORK/found.json"
check "... is the same array" python3 "$WORK/check.py" "$WORK/found.json"

in_ns scan redis-cli -h 10.77.5.1 -a hush set dao:machines:behind:hostname behind >/dev/null 2>&1
REDISCLI_AUTH=hush ip netns exec "$ns-scan" "$DAOSERVER" discover >"$WORK/locked"
check "a password opens a locked Redis" grep -q "10.77.5.1:6379 \[dao\]  machines: behind" "$WORK/locked"
check "another port finds nothing" same "$none" "$(in_ns scan "$DAOSERVER" discover --port 6380)"
# shellcheck disable=SC2016 # the inner shell expands it
in_ns scan bash -c 'ulimit -n 16; exec "$0" discover --workers 254' "$DAOSERVER" 2>"$WORK/limit.err"
check "too few descriptors: a sentence, not a short list" \
    grep -q "Cannot scan with .* descriptors" "$WORK/limit.err"

finish
