# Helpers of the scenarios; to be sourced. A scenario ends with `finish`; exit code 77: it was skipped.
# shellcheck shell=bash
set -u

DAOSERVER=$(realpath "${DAOSERVER:-$(dirname "${BASH_SOURCE[0]}")/../../target/debug/daoserver}")
export DAOSERVER
REPOSITORY=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
WORK=$(mktemp -d "${TMPDIR:-/tmp}/daoserver-scenario.XXXXXX")
# What is asked all the time must be cheap: a wrapper around python3, as pyenv has, takes three times as long as Python.
interpreter=$(python3 -ISc 'import sys; print(sys.executable)' 2>/dev/null) && PATH=$(dirname "$interpreter"):$PATH
PASSED=0
FAILED=0
# Processes that this scenario started, and commands that undo the rest, last first.
PIDS=()
UNDO=()
# Stands in every segment's name: semaphores are the whole machine's, and other scenarios may run at the same time.
TAG="t$$x"
# Process ids of the daemons, by host name.
declare -A DAEMON=()
# Of the machines that `machines` made: the process that holds its namespaces, and its address. Others are this machine.
declare -A HOLDER=() ADDRESS=()
REDIS_IP=127.0.0.1

cleanup() {
    local i pid
    for pid in ${PIDS[@]+"${PIDS[@]}"}; do kill "$pid" 2>/dev/null; done
    for pid in ${PIDS[@]+"${PIDS[@]}"}; do
        for ((i = 0; i < 30; i++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    for ((i = ${#UNDO[@]} - 1; i >= 0; i--)); do eval "${UNDO[i]}"; done
    rm -rf "$WORK" /dev/shm/sem.*"$TAG"*
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# skip REASON: this scenario cannot run here.
skip() {
    echo "skipped: $*"
    exit 77
}

pass() {
    PASSED=$((PASSED + 1))
    echo "ok    $*"
}

fail() {
    FAILED=$((FAILED + 1))
    echo "FAIL  $*"
}

# check WHAT COMMAND...: passes if the command does.
check() {
    local what=$1
    shift
    if "$@" >"$WORK/check.log" 2>&1; then
        pass "$what"
    else
        fail "$what"
        sed 's/^/      /' "$WORK/check.log"
    fi
}

# same WANTED GOT
same() {
    [[ "$1" == "$2" ]] || {
        printf 'wanted: %s\ngot:    %s\n' "$1" "$2"
        return 1
    }
}

# eventually SECONDS COMMAND...: until the command passes, or the time is over.
eventually() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS >= end)) && return 1
        sleep 0.05
    done
}

# free_port [N]: a TCP port that nobody listens on now, or the first of N in a row. Scenarios that run at the same time
# are given a range each (PORTS_FROM, PORTS): what is free now must still be so when it is used. The last 200 are for who
# counts on from such a port.
free_port() {
    local port one
    while :; do
        port=$((${PORTS_FROM:-20000} + RANDOM % (${PORTS:-12000} - 200)))
        for ((one = port; one < port + ${1:-1}; one++)); do
            (exec 3<>"/dev/tcp/127.0.0.1/$one") 2>/dev/null && continue 2
        done
        break
    done
    echo "$port"
}

# start_redis [PORT]: a Redis of our own, empty; sets REDIS_PORT and REDIS_PID.
start_redis() {
    command -v redis-server >/dev/null || skip "redis-server is not installed"
    local again
    for again in 1 2 3; do
        REDIS_PORT=${1:-$(free_port)}
        mkdir -p "$WORK/redis"
        redis-server --port "$REDIS_PORT" --bind 127.0.0.1 --save "" --appendonly no --dir "$WORK/redis" \
            >"$WORK/redis.log" 2>&1 &
        REDIS_PID=$!
        PIDS+=("$REDIS_PID")
        eventually 5 redis_decided && kill -0 "$REDIS_PID" 2>/dev/null && return
    done
    echo "Redis did not start on port $REDIS_PORT ($again times)"
    exit 1
}
# It answers, and not another that was faster to take the port; or it has given up.
redis_decided() {
    redis-cli -p "$REDIS_PORT" info server | grep -q "^process_id:${REDIS_PID}[^0-9]*$" || ! kill -0 "$REDIS_PID"
}

redis() { on redis redis-cli -h "$REDIS_IP" -p "$REDIS_PORT" "$@"; }

# machines NAMES...: each with namespaces of its own for network, mounts (/dev/shm) and host name, on two networks:
# 10.78.1.0/24, where a Redis of the machine `redis` is, and 10.78.2.0/24 for the frames. Every helper below works there.
# So that examples of a manual can be run as they are written: CONTROL_NET and REDIS_NUMBER give Redis another address
# than 10.78.1.1; OWN_TMP=yes gives each machine a /tmp, empty but for what the scenario itself has there.
CONTROL_NET=10.78.1 REDIS_NUMBER=1 OWN_TMP=no
machines() {
    local name number=2 ns=dao$$
    [[ $(id -u) == 0 ]] || skip "network namespaces need root"
    for name in ip unshare nsenter redis-server; do command -v "$name" >/dev/null || skip "$name is not installed"; done
    network_namespace "$ns-redis"
    for bridge in control frames; do
        ip -n "$ns-redis" link add "$bridge" type bridge 2>"$WORK/ip.log" || skip "no bridge: $(cat "$WORK/ip.log")"
        ip -n "$ns-redis" link set "$bridge" up
    done
    ip -n "$ns-redis" address add "$CONTROL_NET.$REDIS_NUMBER/24" dev control
    hold redis "$ns-redis"
    for name in "$@"; do
        ((number != REDIS_NUMBER)) || number=$((number + 1))
        network_namespace "$ns-$name"
        wire "$ns" "$name" control "$CONTROL_NET.$number"
        wire "$ns" "$name" frames "10.78.2.$number"
        hold "$name" "$ns-$name"
        ADDRESS[$name]=10.78.2.$number
        number=$((number + 1))
    done
    REDIS_IP=$CONTROL_NET.$REDIS_NUMBER REDIS_PORT=6379
    mkdir -p "$WORK/redis"
    launch redis "$WORK/redis.log" redis-server --port "$REDIS_PORT" --bind "$REDIS_IP" --protected-mode no --save "" \
        --appendonly no --dir "$WORK/redis"
    eventually 5 redis ping || skip "Redis does not start in a network namespace"
}

network_namespace() {
    ip netns add "$1" 2>"$WORK/ip.log" || skip "no network namespace: $(cat "$WORK/ip.log")"
    UNDO+=("ip netns del $1")
    ip -n "$1" link set lo up
}

wire() { # wire PREFIX NAME BRIDGE ADDRESS
    ip -n "$1-redis" link add "$3-$2" type veth peer name "$3" netns "$1-$2"
    ip -n "$1-redis" link set "$3-$2" master "$3" up
    ip -n "$1-$2" address add "$4/24" dev "$3"
    ip -n "$1-$2" link set "$3" up
}

# cut NAME down|up: the network of a machine's frames; that to Redis stays.
cut_link() { ip -n "dao$$-redis" link set "frames-$1" "$2"; }

hold() { # hold NAME NAMESPACE
    local kept=()
    [[ $OWN_TMP == yes ]] && mapfile -t kept < <(below_tmp)
    # What is to stay is put aside, into the new /dev/shm, while a new /tmp is laid over the old one.
    # shellcheck disable=SC2016 # the inner shell expands it
    ip netns exec "$2" unshare --mount --uts bash -ec 'name=$1 held=$2 own_tmp=$3
        shift 3
        mount -t tmpfs none /dev/shm
        hostname "$name"
        if [[ $own_tmp == yes ]]; then
            for path in "$@"; do mkdir -p "/dev/shm/kept$path" && mount --bind "$path" "/dev/shm/kept$path"; done
            mount -t tmpfs -o mode=1777 none /tmp
            for path in "$@"; do mkdir -p "$path" && mount --move "/dev/shm/kept$path" "$path"; done
            rm -r /dev/shm/kept 2>/dev/null || (($# == 0))
        fi
        : >"$held"
        exec sleep 1000000' bash "$1" "$WORK/held.$1" "$OWN_TMP" ${kept[@]+"${kept[@]}"} 2>"$WORK/hold.log" &
    HOLDER[$1]=$!
    PIDS+=("$!")
    eventually 5 test -e "$WORK/held.$1" || skip "no namespaces: $(cat "$WORK/hold.log")"
}

# The directories below /tmp that a scenario needs everywhere: its own, the repository, the programs; none in another.
below_tmp() {
    local path last=/nowhere
    for path in "$WORK" "$REPOSITORY" "$(dirname "$DAOSERVER")"; do
        [[ $path == /tmp/?* ]] && echo "$path"
    done | sort | while read -r path; do
        [[ $path/ == "$last"/* ]] && continue
        echo "$path"
        last=$path
    done
}

# on NAME COMMAND...: on that machine, if it is one that `machines` made.
on() {
    local name=$1
    shift
    if [[ -n ${HOLDER[$name]:-} ]]; then
        nsenter --target "${HOLDER[$name]}" --mount --uts --net "$@"
    else
        "$@"
    fi
}

# launch NAME LOG COMMAND...: on that machine in the background; sets LAUNCHED, its process id.
launch() {
    local name=$1 log=$2
    shift 2
    # No function in between: the process must be the one that $! names, so that it is stopped.
    if [[ -n ${HOLDER[$name]:-} ]]; then
        nsenter --target "${HOLDER[$name]}" --mount --uts --net "$@" >>"$log" 2>&1 &
    else
        "$@" >>"$log" 2>&1 &
    fi
    LAUNCHED=$!
    PIDS+=("$LAUNCHED")
}

address() { echo "${ADDRESS[$1]:-127.0.0.1}"; }

# start_daemon HOST [FLAGS...]: the daemon of a machine of that name, with its own directory; waits for its ready line.
# Its log is $WORK/HOST.log, begun anew at each start. TRANSPORT=zmq: as if there were no other.
start_daemon() {
    launch_daemon "$@"
    eventually 10 is_ready "$1" || {
        echo "the daemon of $1 did not start:"
        cat "$WORK/$1.log"
        exit 1
    }
}

# The same without waiting.
launch_daemon() {
    local host=$1
    shift
    mkdir -p "$WORK/$host"
    BASE_PORT=$(free_port)
    : >"$WORK/$host.log"
    launch "$host" "$WORK/$host.log" "$DAOSERVER" --redis-host "$REDIS_IP" --redis-port "$REDIS_PORT" --hostname "$host" \
        --shm-dir "$WORK/$host" --advertise-ip "$(address "$host")" --base-pub-port "$BASE_PORT" \
        --transport "${TRANSPORT:-auto}" "$@"
    DAEMON[$host]=$LAUNCHED
}

is_ready() { grep -q "^daoserver running on '$1' ($(address "$1")) as " "$WORK/$1.log"; }

# kill_daemon HOST [SIGNAL]: and waits for its end; returns its exit code.
kill_daemon() {
    local pid=${DAEMON[$1]}
    kill "-${2:-KILL}" "$pid"
    wait "$pid" 2>/dev/null
}

# at HOST COMMAND...: a command of that machine. Everything that is asked of daemons and Redis goes this way.
at() {
    local host=$1
    shift
    on "$host" "$DAOSERVER" "$@" --redis-host "$REDIS_IP" --redis-port "$REDIS_PORT" --hostname "$host" --shm-dir "$WORK/$host"
}

# shm HOST COMMAND...: `daoserver shm COMMAND...` on the segments of that machine.
shm() {
    local host=$1
    shift
    on "$host" "$DAOSERVER" shm "$@" --shm-dir "$WORK/$host"
}

# writer HOST NAME [OPTIONS...]: writes numbered frames into a segment in the background; sets WRITER, its process id.
writer() {
    local host=$1 name=$2
    shift 2
    launch "$host" "$WORK/writer.log" "$DAOSERVER" shm write "$name" --shm-dir "$WORK/$host" "$@"
    # shellcheck disable=SC2034 # scenarios wait for it
    WRITER=$LAUNCHED
}

# need_python: most scenarios read JSON.
need_python() { command -v python3 >/dev/null || skip "python3 is not installed"; }

# json EXPRESSION: the value of a Python expression of `d`, the JSON on standard input. Text and numbers bare.
json() {
    python3 -ISc 'import json, sys
d = json.load(sys.stdin)
value = eval(sys.argv[1])
print(value if isinstance(value, str) else json.dumps(value))' "$1"
}

# status HOST EXPRESSION: of `status --json`.
status() { at "$1" status --json | json "$2"; }

# The newest counter of a segment; 0 if it cannot be had.
counter() { shm "$1" info "$2" --json 2>/dev/null | json 'd["counter"]' 2>/dev/null || echo 0; }

# reached HOST NAME COUNTER
reached() { (($(counter "$1" "$2") >= $3)); }

# get HOST OWNER NAME: a mirror there; fails with its message.
get() { at "$1" get "$2" "$3"; }

# get_both HOST OWNER NAME: the same, and what is written into it goes back.
get_both() { at "$1" get "$2" "$3" --bidirectional; }

# value HOST NAME: the first element of a segment of one axis. has HOST NAME VALUE: it is that.
value() { shm "$1" read "$2" --json | json 'd["data"][0]'; }
has() { python3 -ISc 'import sys; sys.exit(float(sys.argv[1]) != float(sys.argv[2]))' "$(value "$1" "$2")" "$3"; }

# put HOST NAME VALUE: writes one frame, all elements of which are VALUE.
put() { shm "$1" write "$2" --fill "$3"; }

# mirror_of HOST OWNER NAME EXPRESSION: of `m`, that mirror in `status --json`. published HOST NAME EXPRESSION: of `p`,
# that publisher. written_by HOST NAME CLIENT EXPRESSION: of `w`, what that client wrote back into it.
mirror_of() { status "$1" "[$4 for m in d['mirrors'] if [m['hostname'], m['shm']] == ['$2', '$3']][0]"; }
published() { status "$1" "[$3 for p in d['publishers'] if p['shm'] == '$2'][0]"; }
written_by() { published "$1" "$2" "[$4 for w in p.get('written_by', []) if w['client'] == '$3'][0]"; }

# linked OWNER NAME CLIENT: what that client writes reaches the owner from now on. To be waited for with `eventually`.
linked() { [[ "$(mirror_of "$3" "$1" "$2" '[m["connected"], m["bidirectional"]]') $(written_by "$1" "$2" "$3" 'w["connected"]')" == "[true, true] true" ]]; }

# in_registry HOST NAME: to be waited for with `eventually`.
in_registry() { [[ -n "$(registered "$1" "$2" dtype)" ]]; }

# A mirror's name for `shm`, and its file.
mirror() { echo "remote_$1_$2"; }
mirror_file() { echo "$WORK/$1/remote_$2_$3.im.shm"; }
inode() { stat -c %i "$1"; }

# registered HOST NAME FIELD: what the registry says of a segment.
registered() { redis get "dao:machines:$1:shm:$2:$3"; }

# not COMMAND...: passes if the command fails.
not() { ! "$@"; }

# fails CODE SENTENCE COMMAND...: the command ends with that code and that sentence (a part of it), in one line.
fails() {
    local code=$1 sentence=$2 got
    shift 2
    "$@" >/dev/null 2>"$WORK/error"
    got=$?
    grep -qF -e "$sentence" "$WORK/error" && ((got == code)) && same 1 "$(grep -c '^daoserver: ' "$WORK/error")" && return
    echo "wanted: exit $code, $sentence"
    echo "got:    exit $got, $(cat "$WORK/error")"
    return 1
}

# one_sentence "CODES" COMMAND...: the command ends with one of these codes and one line that begins with our name.
one_sentence() {
    local codes=$1 got
    shift
    "$@" >/dev/null 2>"$WORK/error"
    got=$?
    [[ " $codes " == *" $got "* ]] && same 1 "$(wc -l <"$WORK/error")" && grep -q '^daoserver: .' "$WORK/error" && return
    echo "wanted: exit one of $codes, one sentence"
    echo "got:    exit $got, $(cat "$WORK/error")"
    return 1
}

# streams_to OWNER NAME CLIENTS...: the segment is registered, each client has a mirror, whose stream goes.
streams_to() {
    local owner=$1 name=$2 host
    shift 2
    check "$owner's segment is registered" eventually 5 in_registry "$owner" "$name"
    for host in "$@"; do
        check "get on $host" get "$host" "$owner" "$name"
        check "the stream goes on $host" eventually 5 flows "$host" "$(mirror "$owner" "$name")"
    done
}

# The stream of a mirror goes: its counter grows. To be waited for with `eventually`, while something writes.
flows() {
    local before
    before=$(counter "$1" "$2")
    sleep 0.2
    (($(counter "$1" "$2") > before))
}

# main_job CLIENT: what a daemon is for, between rts and that client: a stream, and a command that goes back.
main_job() {
    local name
    for name in wfs dm; do shm rts create "$name$TAG" --shape 16 --dtype float32 >/dev/null; done
    writer rts "wfs$TAG" --rate 200
    streams_to rts "wfs$TAG" "$1"
    check "rts has another segment" eventually 5 in_registry rts "dm$TAG"
    check "get on $1, to write" get_both "$1" rts "dm$TAG"
    check "... the owner listens" eventually 5 linked rts "dm$TAG" "$1"
    put "$1" "$(mirror rts "dm$TAG")" 7 >/dev/null
    check "... and has its frame" eventually 5 has rts "dm$TAG" 7
}

finish() {
    local log
    if ((FAILED > 0)); then
        for log in "$WORK"/*.log; do
            [[ -s "$log" && "$log" != */check.log ]] && printf -- '--- %s\n%s\n' "${log##*/}" "$(tail -n 40 "$log")"
        done
    fi
    echo
    echo "$PASSED passed, $FAILED failed"
    ((FAILED == 0))
    exit
}
