#!/bin/bash
# daoserver owns the segment; Python clients subscribe, alone and beside daoservers.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
y=${TAG}y
for name in "$x" "$y"; do
    # A ring: on a busy machine a publisher may be late by several of these frames.
    shm alpha create "$name" --shape 8x6 --dtype uint16 --depth 16 >/dev/null
    shm alpha write "$name" --fill 7
done
registered_both() { [[ -n "$(registered alpha "$x" dtype)" && -n "$(registered alpha "$y" dtype)" ]]; }
eventually 5 registered_both || fail "the segments are registered"
write() { for ((i = 0; i < $1; i++)); do shm alpha write "$x"; done; } # frames that hold their counter

# The contract's: a request as a Python client writes it. Nothing is being written.
peer one python_client --owner alpha --segment "$x:8x6:uint16" --check counter
check "a Python client gets the current frame of an idle segment" eventually 10 true_of one 'last("progress")["number"] == 7'
echo "      first frame $(said one 'last("first")["ms"]') ms after the subscription"
check "its request is gone" same 0 "$(redis exists "dao:connections:alpha:$x")"
record='{k: v for k, v in d[0].items() if k != "dao"}'
check "the record is the contract's, with additions in one field" same \
    "{\"bidirectional\": false, \"client_hostname\": \"one\", \"client_ip\": \"127.0.0.1\", \"client_pub_port\": null, \"port\": $(status alpha 'd["publishers"][0]["port"]'), \"server_ip\": \"127.0.0.1\", \"transport\": \"zmq\"}" \
    "$(registered alpha "$x" connections | json "dict(sorted(($record).items()))")"
write 3
check "every frame comes, and nothing else" eventually 10 true_of one \
    '[last("progress")[k] for k in ("number", "frames", "bad")] == [4, 4, 0]'

# A request with fields that a later client may add.
peer two python_client --owner alpha --segment "$y:8x6:uint16" --check counter \
    --extra '{"dao": {"wire": 9, "x": [1]}, "priority": 7, "name": "?"}'
check "a request with unknown fields is answered" eventually 10 true_of two 'last("progress")["number"] == 7'

# The second client of a segment finds a record and asks nobody.
peer three python_client --owner alpha --segment "$x:8x6:uint16" --check counter --no-ask
check "a second client, which never asks, gets the current frame" eventually 10 true_of three 'last("progress")["frames"] >= 1'
check "... through the record of the first" same one "$(said three 'last("connected")["record_of"]')"

check "a daoserver mirrors the same segment" get beta alpha "$x"
before=$(counter alpha "$x")
write 5
check "both kinds have the last frame: the first client" eventually 10 true_of one "last('progress')['number'] == $((before + 5))"
check "... the second" eventually 10 true_of three "last('progress')['number'] == $((before + 5))"
reads() { same "$1" "$(shm beta read "$(mirror alpha "$x")" --json | json 'd["data"][0][0]')"; }
check "... the mirror" eventually 10 reads "$((before + 5))"
for name in one three; do
    check "$name missed nothing, and nothing was bad" same "[0, 0]" "$(said "$name" '[last("progress")[k] for k in ("bad", "missing")]')"
done
# One that came later costs the others no repeated frame.
check "no frame came twice" true_of one 'last("progress")["repeated"] == 0'
check "the mirror saw none twice" same 0 "$(status beta 'd["mirrors"][0]["repeated"]')"

finish
