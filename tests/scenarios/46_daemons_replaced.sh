#!/bin/bash
# The owner's daemon is replaced by a Python daemon and back, under a live Python client and a live daoserver.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
remote=$(mirror alpha "$x")
segment=$x:32x8:float64
shm alpha create "$x" --shape 32x8 --dtype float64 --keyword gain=3 >/dev/null
frames make "$WORK" "$segment" --count 50 || fail "frames can be made"
registered_here() { [[ -n "$(registered alpha "$x" dtype)" ]]; }
start_writer() { writer alpha "$x" --raw "$WORK/$x.raw" --rate 100 --count 1000000000; }
start_writer
eventually 5 registered_here || fail "the segment is registered"
peer live python_client --owner alpha --segment "$segment"
check "a Python client" eventually 10 client_flows live
check "a daoserver" get beta alpha "$x"
check "... its stream goes" eventually 10 flows beta "$remote"
port=$(status alpha 'd["publishers"][0]["port"]')
wire_is() { same "$1" "$(status beta 'd["mirrors"][0]["wire"]')"; }
check "... over our wire" wire_is dao
file=$(mirror_file beta alpha "$x")
before=$(inode "$file")
count=$(counter beta "$remote")
grown() { (($(counter beta "$remote") > count)); }

both_go_on() { # both_go_on WHAT WIRE
    check "$1: our client goes on" eventually 30 flows beta "$remote"
    check "$1: ... over the wire there is" eventually 30 wire_is "$2"
    check "$1: ... and still" eventually 10 flows beta "$remote"
    check "$1: ... in the same file" same "$before" "$(inode "$file")"
    check "$1: ... its counter only grew" grown
    count=$(counter beta "$remote")
    check "$1: the Python client goes on" eventually 30 client_flows live
    check "$1: ... on the connection it had" true_of live 'len([l for l in lines if l["event"] == "connected"]) == 1'
    check "$1: ... with no bad frame" true_of live 'last("progress")["bad"] == 0'
}

replace() { # replace SIGNAL
    kill "$WRITER"
    wait "$WRITER" 2>/dev/null
    kill_daemon alpha "$1"
    # Nobody tells a Python daemon who was served before: our client asks again, and whoever knows the port is served too.
    python_owner alpha --segment "$segment" --port "$port" --rate 100 --check 5
    both_go_on "by a Python daemon after $1" python
    end_peer alpha "$2"
    start_writer
    start_daemon alpha
    both_go_on "back by ours after $2" dao
    check "back by ours after $2: on the same port" same "$port" "$(status alpha 'd["publishers"][0]["port"]')"
}
replace TERM TERM
replace KILL KILL

# On the client's side: our client's daemon is replaced by a Python client and back. What the owner sees is a client
# that is silent for a while.
kill_daemon beta TERM
peer later python_client --owner alpha --segment "$segment" --no-ask
check "a client's daemon replaced by a Python one" eventually 10 client_flows later
end_peer later
start_daemon beta
check "... and back" eventually 20 flows beta "$remote"
check "... in the same file" same "$before" "$(inode "$file")"

finish
