#!/bin/bash
# Between owner and client stands a proxy that stops forwarding, dribbles a byte at a time, cuts in the middle of a
# frame, or refuses: the mirror and its keywords say within 4 s that it is stale, nothing torn is ever written, and the
# stream is back soon after it is over. TRANSPORT=zmq: over the other transport.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python

start_redis
# The owner listens on another address of the loopback than the one that it registers, where the proxy is.
base=$(free_port)
start_proxy "$WORK/mode" 127.0.0.1 127.0.0.2 "$base-$((base + 7))"
start_daemon alpha --bind 127.0.0.2 --base-pub-port "$base"
start_daemon beta
x=${TAG}x
remote=$(mirror alpha "$x")
shm alpha create "$x" --shape 128x64 --dtype uint16 --keyword gain=3 >/dev/null
writer alpha "$x" --rate 100
streams_to alpha "$x" beta
recovers "its keywords say so" 4 net_is beta "$remote" NET_LINK 1
check "... and whose it is" net_is beta "$remote" NET_REPLICA alpha
check "... the source's are before them" same '["gain", "NET_REPLICA"]' \
    "$(shm beta info "$remote" --json | json '[k["name"] for k in d["keywords"]][:2]')"
before=$(inode "$(mirror_file beta alpha "$x")")

connected_is() { same "$1" "$(mirror_of beta alpha "$x" 'm["connected"]')"; }
ages() { (($(net beta "$remote" NET_AGE_US) > 1000000)); }
young() { (($(net beta "$remote" NET_AGE_US) < 1000000)); }
# A frame is one number in every element: `shm write` without --fill numbers them.
whole() { shm beta read "$remote" --json | json 'len({v for row in d["data"] for v in row})' | grep -qx 1; }

fault() { # fault WHAT MODE STALE
    local count
    mode "$WORK/mode" "$2"
    if [[ $3 == stale ]]; then
        # 4 s, and what it takes to ask and to notice on a busy machine.
        recovers "$1: NET_LINK says stale" 5 net_is beta "$remote" NET_LINK 0
        recovers "$1: status says so" 1 connected_is false
        check "$1: the age grows" ages
    else
        sleep 3
    fi
    check "$1: both daemons answer" eval "answers alpha 3 && answers beta 3"
    count=$(counter beta "$remote")
    mode "$WORK/mode" forward
    recovers "$1, over: the stream is back" 10 flows beta "$remote"
    recovers "$1, over: NET_LINK says live" 2 net_is beta "$remote" NET_LINK 1
    recovers "$1, over: its frames are young" 2 young
    check "$1, over: the counter only grew" test "$(counter beta "$remote")" -gt "$count"
    check "$1: the same file" same "$before" "$(inode "$(mirror_file beta alpha "$x")")"
    recovers "$1: the owner still serves it" 5 served alpha "$x" '["beta"]'
}
fault "a link that goes silent" stop stale
fault "a link that dribbles" dribble stale
fault "a link that is cut in the middle of a frame" cut any
fault "a link that refuses" refuse stale
fault "a link that goes silent again" stop stale
check "what was cut was never written" same "{}" \
    "$(mirror_of beta alpha "$x" '{k: v for k, v in m["refused"].items() if k not in ("other publisher",)}')"
owner_port() { status alpha 'd["publishers"][0]["port"]'; }
check "the owner has had one publisher all the while" same "$base" "$(owner_port)"

finish
