#!/bin/bash
# Messages on the Python wire that are no frames: refused, counted by cause, never executed, and the stream goes on.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

start_redis
start_daemon beta
x=${TAG}x
segment=$x:8x6:uint16
port=$(free_port)
redis mset dao:machines:evil:ip 127.0.0.1 dao:machines:evil:hostname evil dao:machines:evil:role minion \
    dao:machines:evil:last_connect "$(date -u +%FT%T+00:00)" "dao:machines:evil:shm:$x:dimensions" "[8, 6]" \
    "dao:machines:evil:shm:$x:dtype" uint16 "dao:machines:evil:shm:$x:connections" \
    "[{\"server_ip\": \"127.0.0.1\", \"port\": $port, \"transport\": \"zmq\", \"client_hostname\": \"beta\", \"client_ip\": \"127.0.0.1\", \"bidirectional\": false, \"client_pub_port\": null}]" >/dev/null
"$PYTHON" "$PEERS/hostile_publisher.py" --port "$port" --segment "$segment" --trap "$WORK/trap" \
    >"$WORK/evil.log" 2>"$WORK/evil.err.log" &
PEER[evil]=$!
PIDS+=("$!")
eventually 10 grep -q bound "$WORK/evil.log" || fail "the publisher is there"
check "get" get beta evil "$x"
check "all was sent" eventually 20 true_of evil 'last("done") != {}'
last=$(said evil 'last("done")["number"]')
check "the mirror has the last good frame, bit for bit" eventually 10 holds beta remote_evil_ "$last" "$segment"
check "... and every good one, one count each" same "$last" "$(status beta 'd["mirrors"][0]["frames"] + d["mirrors"][0]["lost"]["mirror_busy"]')"
wanted=$(said evil '(lambda causes: {c: causes.count(c) for c in sorted(set(causes))})([l["cause"] for l in lines if l["event"] == "sent"])')
echo "      $wanted"
check "every other message is counted by its cause" same "$wanted" "$(status beta 'dict(sorted(d["mirrors"][0]["refused"].items()))')"
check "nothing was executed" test ! -e "$WORK/trap"
check "the log says what was refused" grep -q "a message was refused: the pickle names something that is no NumPy array" "$WORK/beta.log"
few() { (($(grep -c "a message was refused" "$WORK/beta.log") <= 12)); }
check "... once for each cause" few
check "a message too large to be taken cuts the link" eventually 10 true_of evil 'last("oversized") != {}'
check "... and the stream goes on" eventually 20 flows beta "$(mirror evil "$x")"
check "still nothing was executed" test ! -e "$WORK/trap"
cat >"$WORK/caught.py" <<'PYTHON'
import pathlib, pickle, sys
sys.path.insert(0, sys.argv[1])
import common, hostile_publisher
messages = hostile_publisher.evil_messages(common.Segment.parse("x:8x6:uint16"), pathlib.Path(sys.argv[2]))
pickle.loads(messages[0][2][0])
PYTHON
"$PYTHON" "$WORK/caught.py" "$PEERS" "$WORK/trap"
check "the trap is a real one: who loads such a message is caught" test -e "$WORK/trap"

finish
