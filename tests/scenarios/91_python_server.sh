#!/bin/bash
# The class DaoServer of scripts/daoServer.py: private daemons and shared ones, how they end, errors, leases, forks.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python.sh
. "$(dirname "$0")/python.sh"
need_numpy

start_redis
start_daemon alpha --role master
shm alpha create "${TAG}wfs" --shape 8x8 --dtype uint32 >/dev/null
shm alpha create "${TAG}dm" --shape 140 --dtype float32 >/dev/null
writer alpha "${TAG}wfs" --rate 100
both_registered() { in_registry alpha "${TAG}wfs" && in_registry alpha "${TAG}dm"; }
eventually 10 both_registered || fail "the segments are registered"

unittests test_server

check "the owner's daemon is as before" same '["alpha"]' "$(at alpha list --json | json '[m["hostname"] for m in d]')"
no_clients() { same '[]' "$(status alpha '[p["shm"] for p in d["publishers"]]')"; }
check "... and publishes to nobody any more" eventually 60 no_clients

finish
