# Helpers of the scenarios; to be sourced. A scenario ends with `finish`; exit code 77: it was skipped.
# shellcheck shell=bash
set -u

DAOSERVER=$(realpath "${DAOSERVER:-$(dirname "${BASH_SOURCE[0]}")/../../target/debug/daoserver}")
export DAOSERVER
WORK=$(mktemp -d "${TMPDIR:-/tmp}/daoserver-scenario.XXXXXX")
PASSED=0
FAILED=0
# Processes that this scenario started, and commands that undo the rest, last first.
PIDS=()
UNDO=()
# Stands in every segment's name: semaphores are the whole machine's, and other scenarios may run at the same time.
TAG="t$$x"
# Process ids of the daemons, by host name.
declare -A DAEMON=()

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

# A TCP port that nobody listens on now.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# start_redis [PORT]: a Redis of our own, empty; sets REDIS_PORT and REDIS_PID.
start_redis() {
    command -v redis-server >/dev/null || skip "redis-server is not installed"
    REDIS_PORT=${1:-$(free_port)}
    mkdir -p "$WORK/redis"
    redis-server --port "$REDIS_PORT" --bind 127.0.0.1 --save "" --appendonly no --dir "$WORK/redis" \
        >"$WORK/redis.log" 2>&1 &
    REDIS_PID=$!
    PIDS+=("$REDIS_PID")
    eventually 5 redis-cli -p "$REDIS_PORT" ping || {
        echo "Redis did not start on port $REDIS_PORT"
        exit 1
    }
}

redis() { redis-cli -h 127.0.0.1 -p "$REDIS_PORT" "$@"; }

# start_daemon HOST [FLAGS...]: the daemon of a machine of that name, with its own directory; waits for its ready line.
# Its log is $WORK/HOST.log, begun anew at each start.
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
    "$DAOSERVER" --redis-host 127.0.0.1 --redis-port "$REDIS_PORT" --hostname "$host" --shm-dir "$WORK/$host" \
        --advertise-ip 127.0.0.1 --base-pub-port "$BASE_PORT" "$@" 2>"$WORK/$host.log" &
    DAEMON[$host]=$!
    PIDS+=("$!")
}

is_ready() { grep -q "^daoserver running on '$1' (127.0.0.1) as " "$WORK/$1.log"; }

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
    "$DAOSERVER" "$@" --redis-host 127.0.0.1 --redis-port "$REDIS_PORT" --hostname "$host" --shm-dir "$WORK/$host"
}

# shm HOST COMMAND...: `daoserver shm COMMAND...` on the segments of that machine.
shm() {
    local host=$1
    shift
    "$DAOSERVER" shm "$@" --shm-dir "$WORK/$host"
}

# writer HOST NAME [OPTIONS...]: writes numbered frames into a segment in the background; sets WRITER, its process id.
writer() {
    local host=$1 name=$2
    shift 2
    "$DAOSERVER" shm write "$name" --shm-dir "$WORK/$host" "$@" 2>>"$WORK/writer.log" &
    WRITER=$!
    PIDS+=("$WRITER")
}

# need_python: most scenarios read JSON.
need_python() { command -v python3 >/dev/null || skip "python3 is not installed"; }

# json EXPRESSION: the value of a Python expression of `d`, the JSON on standard input. Text and numbers bare.
json() {
    python3 -c 'import json, sys
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

# The stream of a mirror goes: its counter grows. To be waited for with `eventually`, while something writes.
flows() {
    local before
    before=$(counter "$1" "$2")
    sleep 0.2
    (($(counter "$1" "$2") > before))
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
