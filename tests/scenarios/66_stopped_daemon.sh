#!/bin/bash
# A daemon is stopped for 20 s, as by a debugger or a machine that swaps, and goes on: first the owner's, then a
# client's. Programs write and read on; the others say stale, answer all the while, and have their stream back at once.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python
((STOPPED = ${STOPPED:-20}))

start_redis
for host in alpha beta gamma; do start_daemon "$host"; done
x=${TAG}x dm=${TAG}dm
remote=$(mirror alpha "$x")
shm alpha create "$x" --shape 32x32 --dtype uint16 >/dev/null
shm alpha create "$dm" --shape 8 --dtype float32 >/dev/null
put alpha "$dm" 1
writer alpha "$x" --rate 200
streams_to alpha "$x" beta gamma
eventually 5 in_registry alpha "$dm" || fail "the other segment is registered"
check "beta writes back" get_both beta alpha "$dm"
check "the owner listens" eventually 10 linked alpha "$dm" beta
before=$(inode "$(mirror_file beta alpha "$x")")
held() { echo "$(threads "${DAEMON[alpha]}") $(threads "${DAEMON[beta]}") $(descriptors "${DAEMON[alpha]}") $(descriptors "${DAEMON[beta]}")"; }
before_held=$(held)

stop() { # stop HOST OTHER WHAT
    kill -STOP "${DAEMON[$1]}"
    local until=$((SECONDS + STOPPED))
    if [[ $1 == alpha ]]; then
        recovers "$3: NET_LINK says stale" 5 net_is beta "$remote" NET_LINK 0
        recovers "$3: and on the other client" 2 net_is gamma "$remote" NET_LINK 0
    else
        while ((SECONDS < until - 2)); do
            check "$3: the other client loses nothing by it" flows gamma "$remote"
            sleep 4
        done
    fi
    check "$3: a command of it ends, with a sentence" one_sentence "1 8" timeout 15 "$DAOSERVER" status --control "$WORK/$1/.daoserver-$1.sock"
    check "$3: the other daemon answers" answers "$2" 3
    while ((SECONDS < until)); do sleep 0.2; done
    kill -CONT "${DAEMON[$1]}"
    for host in beta gamma; do recovers "$3, and goes on: the stream is back on $host" 5 flows "$host" "$remote"; done
    recovers "$3, and goes on: NET_LINK says live" 2 net_is beta "$remote" NET_LINK 1
    check "$3: in the same file" same "$before" "$(inode "$(mirror_file beta alpha "$x")")"
    recovers "$3: the client is one, and its writes arrive" 10 linked alpha "$dm" beta
    recovers "$3: the records name both" 10 served alpha "$x" '["beta", "gamma"]'
    put beta "$(mirror alpha "$dm")" "$STOPPED"
    recovers "$3: a value written back arrives" 5 has alpha "$dm" "$STOPPED"
    put alpha "$dm" 3
    recovers "$3: and the owner's" 5 has beta "$(mirror alpha "$dm")" 3
}
stop alpha beta "the owner stopped for $STOPPED s"
stop beta alpha "the client stopped for $STOPPED s"
# Up to four links to Redis are kept when several were needed at the same time.
as_before() {
    python3 -ISc 'import sys; a, b = (list(map(int, text.split())) for text in sys.argv[1:])
print(a, b); sys.exit(not (a[:2] == b[:2] and all(other <= one + 4 for one, other in zip(a[2:], b[2:]))))' "$before_held" "$(held)"
}
recovers "as many threads and descriptors as before" 10 as_before

finish
