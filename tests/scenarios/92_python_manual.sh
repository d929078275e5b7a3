#!/bin/bash
# The programs of the Python daemon's manual, with scripts/daoServer.py, between two machines of a network of their own.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python.sh
. "$(dirname "$0")/python.sh"
need_numpy

machines rts gui
start_daemon rts --role master
shm rts create "${TAG}wfs" --shape 16x16 --dtype uint16 >/dev/null
shm rts create "${TAG}dm_commands" --shape 140 --dtype float32 >/dev/null
writer rts "${TAG}wfs" --rate 200
both_registered() { in_registry rts "${TAG}wfs" && in_registry rts "${TAG}dm_commands"; }
eventually 10 both_registered || fail "the segments are registered"

mkdir "$WORK/gui"
on_machine gui manual "$REDIS_IP" "$WORK/gui" "$TAG" >"$WORK/manual.out.log" 2>"$WORK/manual.err.log"
same_exit=$?
check "the manual's programs end well" same 0 "$same_exit"
says() { grep -qxF -e "$1" "$WORK/manual.out.log"; }
check "the machines are listed" says "rts master ['${TAG}dm_commands', '${TAG}wfs']"
check "100 frames came" same 100 "$(grep -c '^(16, 16) [0-9]' "$WORK/manual.out.log")"
check "... each newer than the one before" sort -c -n -u -k 3 <(grep '^(16, 16) ' "$WORK/manual.out.log")
written() { has rts "${TAG}dm_commands" 0.01; }
check "what was written into the mirror is in the owner's segment" eventually 5 written
check "several streams, one from before start" says "several (16, 16) (140,)"
check "registered" says "registered ['gui', 'rts']"
check "a minion deregisters nobody else" says "PermissionError Only master may deregister other machines."
check "discovery finds the cluster's Redis" says "discover [('$REDIS_IP', 6379, True, ['rts'])]"
check "... the function, too" says "discover_redis 1"
check "no machine" says "KeyError \"No machine 'nobody' registered in Redis.\""
check "no segment" says "KeyError \"No SHM 'nothing' registered for host 'rts'.\""
check "no transport" says "NotImplementedError rdma connector not implemented."
check "no Redis" grep -q "^ConnectionError Cannot connect to Redis at 10.78.1.250:6379: " "$WORK/manual.out.log"
check "to the end" says "done"
check "nothing is left of the private daemon but its memory" same .daoserver-gui.sock.memory "$(ls -A "$WORK/gui")"
check "... and no registration" same '["rts"]' "$(at rts list --json | json '[m["hostname"] for m in d]')"

finish
