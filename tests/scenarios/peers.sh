# Helpers of the scenarios with Python peers; to be sourced after lib.sh.
# shellcheck shell=bash

PEERS=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../peers")
export PYTHONDONTWRITEBYTECODE=1
# Process ids of the peers, by name.
declare -A PEER=()

# need_peers: PYTHON is one with numpy, pyzmq and redis; `scripts/test` makes it.
need_peers() {
    need_python
    PYTHON=${DAOSERVER_PYTHON:-$PEERS/../../target/venv/bin/python}
    "$PYTHON" -c 'import numpy, zmq, redis' 2>/dev/null ||
        skip "no Python with numpy, pyzmq and redis (scripts/test makes one in target/venv)"
}

# peer NAME python_owner|python_client [OPTIONS...]: starts one in the background; its lines are in $WORK/NAME.log.
peer() {
    local name=$1 script=$2
    shift 2
    "$PYTHON" "$PEERS/$script.py" --redis-port "$REDIS_PORT" --hostname "$name" "$@" >"$WORK/$name.log" 2>"$WORK/$name.err.log" &
    PEER[$name]=$!
    PIDS+=("$!")
}

# python_owner NAME [OPTIONS...]: and waits until it is registered.
python_owner() {
    peer "$1" python_owner "${@:2}"
    eventually 10 grep -q '"registered"' "$WORK/$1.log" || {
        echo "the Python owner $1 did not start:"
        cat "$WORK/$1.err.log"
        exit 1
    }
}

# end_peer NAME [SIGNAL]: and waits for its end.
end_peer() {
    kill "-${2:-TERM}" "${PEER[$1]}" 2>/dev/null
    wait "${PEER[$1]}" 2>/dev/null
}

# said NAME EXPRESSION: of what a peer has said: `lines` is all of it, `last(EVENT, SEGMENT)` the last such line or {}.
said() {
    python3 -ISc 'import json, sys
lines = [json.loads(line) for line in open(sys.argv[1]) if line.endswith("\n")]
def last(event, segment=None):
    found = [l for l in lines if l["event"] == event and segment in (None, l.get("segment"))]
    return found[-1] if found else {}
value = eval(sys.argv[2])
print(value if isinstance(value, str) else json.dumps(value))' "$WORK/$1.log" "$2"
}

# true_of NAME EXPRESSION: to be waited for with `eventually`.
true_of() { [[ "$(said "$@" 2>/dev/null)" == true ]]; }

# client_flows NAME: a Python client has more frames than a moment ago.
client_flows() {
    local before
    before=$(said "$1" 'last("progress")["frames"]' 2>/dev/null || echo 0)
    eventually 2 true_of "$1" 'last("progress")["frames"] > '"$before"
}

# frames COMMAND...: makes and checks numbered frames.
frames() { "$PYTHON" "$PEERS/frames.py" "$@"; }

# holds HOST PREFIX NUMBER SEGMENT...: those mirrors hold that frame, bit for bit.
holds() { frames check "$WORK/$1" --daoserver "$DAOSERVER" --prefix "$2" --number "$3" "${@:4}"; }
