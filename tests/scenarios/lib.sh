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
    rm -rf "$WORK"
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

# start_redis: a Redis of our own; sets REDIS_PORT and REDIS_PID.
start_redis() {
    command -v redis-server >/dev/null || skip "redis-server is not installed"
    REDIS_PORT=$(free_port)
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

finish() {
    echo
    echo "$PASSED passed, $FAILED failed"
    ((FAILED == 0))
    exit
}
