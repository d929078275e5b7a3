#!/bin/bash
# Redis ends and comes back empty while a stream runs: frames go on, the registry is complete again, and new mirrors
# can be had. FLUSHALL is the same. Without Redis a daemon does not start, and says so.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

port=$(free_port)
begun=$SECONDS
check "Redis down at start: exit 7 and its sentence" fails 7 "Cannot connect to Redis at 127.0.0.1:$port: " \
    "$DAOSERVER" --redis-host 127.0.0.1 --redis-port "$port" --hostname alpha --shm-dir "$WORK"
check "... within 5 s" test $((SECONDS - begun)) -le 5
check "... leaving nothing behind" same "" "$(find "$WORK" -name '.daoserver*')"
check "list says the same" fails 7 "Cannot connect to Redis at 127.0.0.1:$port: " \
    "$DAOSERVER" list --redis-host 127.0.0.1 --redis-port "$port"

start_redis "$port"
start_daemon alpha
start_daemon beta
x=${TAG}x y=${TAG}y z=${TAG}z
remote=$(mirror alpha "$x")
for name in "$x" "$y" "$z"; do shm alpha create "$name" --shape 16x16 --dtype uint16 >/dev/null; done
writer alpha "$x" --rate 500
streams_to alpha "$x" beta
before=$(inode "$(mirror_file beta alpha "$x")")

# Everything that must stand there: machines, segments, the record, the client's heartbeat.
complete() {
    local host key
    for host in alpha beta; do
        for key in ip hostname role last_connect; do
            [[ $(redis exists "dao:machines:$host:$key") == 1 ]] || { echo "no $key of $host" && return 1; }
        done
    done
    for key in "$x" "$y" "$z"; do
        same "[16, 16] uint16" "$(registered alpha "$key" dimensions) $(registered alpha "$key" dtype)" || return 1
    done
    [[ "$(registered alpha "$x" connections | json '[r["client_hostname"] for r in d]')" == '["beta"]' ]] || return 1
}
heartbeat() { [[ $(redis exists "dao:heartbeats:alpha:$x:beta") == 1 ]]; }
check "the registry is complete" eventually 5 complete

kill -9 "$REDIS_PID"
wait "$REDIS_PID" 2>/dev/null
disconnected() { same false "$(status "$1" 'd["redis"]["connected"]')"; }
check "Redis killed: the owner notices" eventually 15 disconnected alpha
check "Redis killed: the client notices" eventually 15 disconnected beta
check "... frames go on" eventually 3 flows beta "$remote"
check "... a mirror that is there is had without Redis" get beta alpha "$x"
check "... one that is not: exit 7" fails 7 "Cannot connect to Redis at 127.0.0.1:$port: " at beta get alpha "$y"
check "... list: exit 7" fails 7 "Cannot connect to Redis" at beta list

start_redis "$port"
check "back, empty: the registry is complete within 10 s" eventually 10 complete
check "... the client's heartbeat, too" eventually 11 heartbeat
check "... frames go on" eventually 3 flows beta "$remote"
check "... in the same file" same "$before" "$(inode "$(mirror_file beta alpha "$x")")"
check "... a new mirror can be had" get beta alpha "$y"

redis flushall >/dev/null
check "FLUSHALL: the registry is complete within 10 s" eventually 10 complete
check "... the client's heartbeat, too" eventually 11 heartbeat
check "... frames go on" eventually 3 flows beta "$remote"
check "... a new mirror can be had" get beta alpha "$z"
check "the roles are what they were" same "master minion" "$(redis get dao:machines:alpha:role) $(redis get dao:machines:beta:role)"

# Stopping without Redis.
kill -9 "$REDIS_PID"
wait "$REDIS_PID" 2>/dev/null
begun=$SECONDS
kill_daemon beta TERM
check "SIGTERM without Redis: exit 0" same 0 $?
check "... within 3 s" test $((SECONDS - begun)) -le 3

finish
