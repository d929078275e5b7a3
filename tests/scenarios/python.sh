# Helpers of the scenarios of scripts/daoServer.py; to be sourced after lib.sh.
# shellcheck shell=bash

TESTS=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../python")
export PYTHONDONTWRITEBYTECODE=1

# need_numpy: PYTHON is one with NumPy; `scripts/test` makes it.
need_numpy() {
    PYTHON=${DAOSERVER_PYTHON:-$TESTS/../../target/venv/bin/python}
    "$PYTHON" -c 'import numpy' 2>/dev/null || skip "no Python with NumPy (scripts/test makes one in target/venv)"
}

# on_machine HOST PROGRAM [ARGUMENTS...]: one of tests/python, on that machine, with what it needs to know.
on_machine() {
    local host=$1 program=$2
    shift 2
    on "$host" env TEST_DIR="$WORK" TEST_TAG="$TAG" TEST_REDIS="$REDIS_IP:${REDIS_PORT:-0}" \
        timeout --kill-after=5 "${TEST_SECONDS:-150}" "$PYTHON" -W error "$TESTS/$program.py" "$@"
}

# unittests PROGRAM [ARGUMENTS...]: passes if all of its tests do; what it says is shown in any case.
unittests() {
    if on_machine here "$@" >"$WORK/unittest.log" 2>&1; then
        pass "$1: $(grep '^Ran ' "$WORK/unittest.log")"
    else
        fail "$1"
    fi
    sed 's/^/      /' "$WORK/unittest.log"
    rm -f "$WORK/unittest.log"
}
