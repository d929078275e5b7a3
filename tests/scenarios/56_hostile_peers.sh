#!/bin/bash
# Peers that wish us ill, at a publisher's ports and behind a mirror's connection: a crowd, silence, garbage, questions
# without end, readers that never read; wrong shapes and lengths, half a message, one without end. Each is turned away and
# counted, and the normal stream loses nothing by any.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

[[ ${TRANSPORT:-} == zmq ]] && skip "half of it is over TCP"
start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
remote=$(mirror alpha "$x")
# A ring: its writer overtakes nobody who is late by less than half a second, which on a busy machine a thread may be.
shm alpha create "$x" --shape 16x16 --dtype uint16 --depth 256 >/dev/null
writer alpha "$x" --rate 500
streams_to alpha "$x" beta
record() { registered alpha "$x" connections | json "d[0]$1"; }
port=$(record '["port"]') boot=$(record '["dao"]["boot"]')
check "one port for both transports" same "$port" "$(record '["dao"]["tcp"]')"
little_endian() { python3 -ISc 'import sys; print(int(sys.argv[1], 16).to_bytes(8, "little").hex())' "$1"; }
hello=44414f7401000000$(little_endian "$boot")

lost() { mirror_of beta alpha "$x" 'm["lost"]'; }
refused() { status alpha 'd["counters"]["connections_refused"]'; }
resident_kb() { awk '/^VmRSS/ {print $2}' "/proc/${DAEMON[alpha]}/status"; }
descriptors() { find "/proc/${DAEMON[alpha]}/fd" | wc -l; }

# unharmed WHAT: the stream goes, and has lost nothing since it was looked at last.
unharmed() {
    check "... $1: the stream goes on" eventually 5 flows beta "$remote"
    check "... and lost nothing" same "$lost_before" "$(lost)"
    lost_before=$(lost)
}
# enemies WHAT OPTIONS...: some of them; returns when they are done. Their lines are in $WORK/WHAT.log.
enemies() {
    local name=$1
    shift
    nice "$PYTHON" "$PEERS/hostile_peers.py" "$@" >"$WORK/$name.log" 2>"$WORK/$name.err.log"
}

sleep 2
lost_before=$(lost)
sleep 4
unharmed "without anybody"
before_kb=$(resident_kb) before_descriptors=$(descriptors) refused_before=$(refused)
echo "      $before_kb kB, $before_descriptors descriptors, lost: $lost_before"

crowds() { # crowds NAME SAYS: held for three seconds
    check "3000 connections that say ${1//_/ }" enemies "$1" crowd --port "$port" --number 3000 --seconds 3 --says "$2"
    echo "      $(head -n 1 "$WORK/$1.log") $(resident_kb) kB"
    unharmed "held and let go"
}
crowds nothing ""
crowds half_a_hello 44414f7401
crowds a_hello_and_never_read "$hello"
crowds that_they_want_everything_and_never_read zmtp
nice "$PYTHON" "$PEERS/hostile_peers.py" guests --port "$port" --number 400 --seconds 25 --ip 127.0.0.2 \
    >"$WORK/elsewhere.log" 2>"$WORK/elsewhere.err.log" &
elsewhere=$!
PIDS+=("$elsewhere")
check "400 from another address that greet and give signs of life" eventually 10 grep -q connected "$WORK/elsewhere.log"
start_daemon delta
sleep 5 # whoever gave no sign of life would be gone
check "... a new client is served" get delta alpha "$x"
check "... and its stream goes" eventually 5 flows delta "$remote"
kill "$elsewhere"
guests_left() { sed -n 's/.*"left": \([0-9]*\).*/\1/p' "$WORK/elsewhere.log"; }
still_full() { (($(guests_left) >= 240 && $(guests_left) <= 256)); }
check "... while all other places were theirs" eventually 5 still_full
at delta release "$remote" >/dev/null
unharmed "with another client"

floods() { # floods NAME SAYS [FIRST]
    check "${1//_/ }, without end" enemies "$1" flood --port "$port" --seconds 3 --says "$2" --first "${3:-}"
    echo "      $(tail -n 1 "$WORK/$1.log")"
    unharmed "for three seconds"
}
floods garbage ff00a5
floods wrong_hellos 44414f7402000000ffffffffffffffff
floods questions 41 "$hello"
floods subscriptions 00020178000200780003017879 zmtp
floods signs_of_life 04090450494e4700006162 zmtp
floods huge_messages 020000007fffffffff zmtp

crowds that_they_want_everything_and_never_read,_again zmtp
check "they were counted" test "$(refused)" -gt "$((refused_before + 3000))"
said() { grep -c 'a connection from .* is ended: ' "$WORK/alpha.log"; }
few() { (($(said) > 0 && $(said) <= 16)); }
check "... and logged once in a while, not in floods" few
check "the log stays short" test "$(wc -l <"$WORK/alpha.log")" -lt 100
check "the daemon lives" at alpha status
as_before() { (($(descriptors) <= before_descriptors + 16)); }
check "its descriptors are as before" eventually 15 as_before
echo "      $(resident_kb) kB, $(descriptors) descriptors, lost: $(lost)"
check "its memory is as before" test "$(resident_kb)" -lt "$((before_kb + 8192))"

# A daemon that may have few descriptors: they run out, and come back.
if command -v prlimit >/dev/null; then
    start_daemon gamma
    prlimit --pid "${DAEMON[gamma]}" --nofile=200:200
    z=${TAG}z
    shm gamma create "$z" --shape 16x16 --dtype uint16 --depth 64 >/dev/null
    writer gamma "$z" --rate 200
    streams_to gamma "$z" beta
    lost_before_z=$(mirror_of beta gamma "$z" 'm["lost"]')
    check "600 connections" enemies few_descriptors crowd --port "$(published gamma "$z" 'p["port"]')" \
        --number 600 --seconds 5 --says zmtp
    check "... its stream went on" same "$lost_before_z" "$(mirror_of beta gamma "$z" 'm["lost"]')"
    check "... the segment stayed in the registry" not grep -q "$WORK/gamma is not served" "$WORK/gamma.log"
    check "... it was said once" same 1 "$(grep -c 'is ended: descriptors run out' "$WORK/gamma.log")"
    check "... the daemon answers again" eventually 10 at gamma status
    check "... the stream goes" eventually 5 flows beta "$(mirror gamma "$z")"
    check "... the log is short" test "$(wc -l <"$WORK/gamma.log")" -lt 20
fi

# A publisher that is not what its record says. faulty HOST KIND EXTRAS: as the owner of HOST, with that record.
faulty() {
    local host=$1 kind=$2 port
    port=$(free_port)
    redis mset "dao:machines:$host:ip" 127.0.0.1 "dao:machines:$host:hostname" "$host" "dao:machines:$host:role" minion \
        "dao:machines:$host:last_connect" "$(date -u +%FT%T+00:00)" "dao:machines:$host:shm:$x:dimensions" "[16, 16]" \
        "dao:machines:$host:shm:$x:dtype" uint16 "dao:machines:$host:shm:$x:connections" \
        "[{\"server_ip\": \"127.0.0.1\", \"port\": $port, \"transport\": \"zmq\", \"client_hostname\": \"beta\", \"client_ip\": \"127.0.0.1\", \"bidirectional\": false, \"client_pub_port\": null, \"dao\": {\"wire\": 1, \"boot\": \"00000000000000ab\", \"shape\": [16, 16], \"dtype\": \"uint16\", \"keywords\": 0, \"client_boot\": null, \"read_only\": false, \"tcp\": ${3//PORT/$port}}}]" >/dev/null
    "$PYTHON" "$PEERS/hostile_peers.py" "$kind" --port "$port" --boot ab >"$WORK/$host.log" 2>"$WORK/$host.err.log" &
    PIDS+=("$!")
    eventually 10 grep -q bound "$WORK/$host.log" || fail "the publisher $host is there"
    check "get of a faulty publisher ($kind)" get beta "$host" "$x"
}
beta_kb=$(awk '/^VmRSS/ {print $2}' "/proc/${DAEMON[beta]}/status")
faulty evil publisher PORT
faulty worse zmq_publisher null
check "it has sent all its faults" eventually 60 grep -q '"done"' "$WORK/evil.log"
check "... over ZMQ as well" eventually 10 grep -q '"done"' "$WORK/worse.log"
for host in evil worse; do
    check "$host: the good frames behind them come" eventually 20 flows beta "$(mirror "$host" "$x")"
    mirror_of beta "$host" "$x" 'm["refused"]' | sed 's/^/      /'
done
check "each fault over TCP is counted by its cause" same "true" "$(mirror_of beta evil "$x" \
    'all(m["refused"].get(c, 0) > 0 for c in ("other_shape", "bad_shape", "bad_length", "other_publisher", "bad_magic", "bad_parts"))')"
check "... and over ZMQ" same "true" "$(mirror_of beta worse "$x" \
    'all(m["refused"].get(c, 0) > 0 for c in ("other_shape", "bad_shape", "bad_length", "other_publisher", "bad_magic", "bad_parts"))')"
few_refusals() { (($(grep -c "a message was refused" "$WORK/beta.log") <= 16)); }
check "... and logged once for each" few_refusals
unharmed "beside a faulty publisher"
check "the client's daemon has not grown by 64 MB" test "$(awk '/^VmRSS/ {print $2}' "/proc/${DAEMON[beta]}/status")" -lt "$((beta_kb + 65536))"

finish
