#!/bin/bash
# A segment directory is removed with all that is in it, under a running daemon, and made again: first the owner's, then
# a client's. The daemon lives, its control socket is there again, and streams come back.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
remote=$(mirror alpha "$x")
make_source() { shm alpha create "$x" --shape 16x16 --dtype uint16 >/dev/null; }
make_source
writer alpha "$x" --rate 100
streams_to alpha "$x" beta
before=$(inode "$(mirror_file beta alpha "$x")")

kill "$WRITER"
wait "$WRITER" 2>/dev/null
rm -rf "${WORK:?}/alpha"
recovers "the owner's directory is removed: its segment goes from the registry" 5 not in_registry alpha "$x"
recovers "... and that is said" 5 grep -q "$WORK/alpha.* is not served: it cannot be read" "$WORK/alpha.log"
recovers "... the mirror says stale" 6 net_is beta "$remote" NET_LINK 0
check "... the owner lives" kill -0 "${DAEMON[alpha]}"
mkdir "$WORK/alpha"
recovers "made again: the control socket is there" 5 answers alpha 3
make_source
writer alpha "$x" --rate 100
recovers "... and with the segment, the stream" 10 flows beta "$remote"
check "... in the same file" same "$before" "$(inode "$(mirror_file beta alpha "$x")")"

rm -rf "${WORK:?}/beta"
sleep 1
check "the client's directory is removed: the client lives" kill -0 "${DAEMON[beta]}"
check "... the owner serves" answers alpha 3
mkdir "$WORK/beta"
recovers "made again: the control socket is there" 5 answers beta 3
recovers "... and the mirror, with its stream" 10 flows beta "$remote"
remembered() { grep -q "\"$x\"" "$WORK/beta/.daoserver-beta.sock.memory"; }
recovers "... and what the daemon remembers" 5 remembered
kill_daemon beta
start_daemon beta
recovers "killed and started after that: the stream is back" 10 flows beta "$remote"
kill_daemon alpha TERM
check "SIGTERM after that: exit 0" same 0 $?

finish
