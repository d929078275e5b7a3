# Helpers of the scenarios that inject a fault and time the recovery; to be sourced after lib.sh.
# shellcheck shell=bash

# recovers WHAT SECONDS COMMAND...: passes if the command does within that time, and prints how long it took.
recovers() {
    local what=$1 seconds=$2 begun=${EPOCHREALTIME/./} end
    shift 2
    end=$((begun + seconds * 1000000))
    until "$@" >"$WORK/check.log" 2>&1; do
        if ((${EPOCHREALTIME/./} >= end)); then
            fail "$what: not within $seconds s"
            sed 's/^/      /' "$WORK/check.log"
            return
        fi
        sleep 0.05
    done
    pass "$what: within $(((${EPOCHREALTIME/./} - begun) / 1000)) ms (of $seconds s)"
}

# start_proxy MODE_FILE LISTEN_IP SERVER_IP PORTS: tests/peers/proxy.py in the background; PROXY is its process id.
start_proxy() {
    local log
    log=$WORK/proxy.$(basename "$1").log
    echo forward >"$1"
    python3 "$(dirname "${BASH_SOURCE[0]}")/../peers/proxy.py" "$@" >"$log" 2>&1 &
    PROXY=$!
    PIDS+=("$PROXY")
    eventually 5 grep -q ready "$log" || {
        echo "no proxy: $(cat "$log")"
        exit 1
    }
}

# mode FILE MODE: from now on (the proxy looks every 20 ms).
mode() { echo "$2" >"$1.new" && mv "$1.new" "$1"; }

# net HOST MIRROR KEYWORD: its value. net_is HOST MIRROR KEYWORD VALUE
net() { shm "$1" info "$2" --json | json "[k['value'] for k in d['keywords'] if k['name'] == '$3'][0]"; }
net_is() { same "$4" "$(net "$1" "$2" "$3")"; }

# answers HOST SECONDS: its daemon answers `status` within that time, whatever else is the matter.
answers() {
    on "$1" timeout "$2" "$DAOSERVER" status --json --control "$WORK/$1/.daoserver-$1.sock"
}

# The registry has all of these segments of a host, and the host itself.
registered_all() { # registered_all HOST NAMES...
    local host=$1 key
    shift
    for key in ip hostname role last_connect; do
        [[ $(redis exists "dao:machines:$host:$key") == 1 ]] || { echo "no $key of $host" && return 1; }
    done
    for key in "$@"; do
        [[ -n $(registered "$host" "$key" dtype) && -n $(registered "$host" "$key" dimensions) ]] ||
            { echo "no $key of $host" && return 1; }
    done
}

# served HOST NAME CLIENTS: the records of a segment name these clients, a JSON array.
served() { same "$3" "$(registered "$1" "$2" connections | json 'sorted(r["client_hostname"] for r in d)')"; }
# beats HOST NAME CLIENT: the client's heartbeat is there.
beats() { [[ $(redis exists "dao:heartbeats:$1:$2:$3") == 1 ]]; }

# What a process holds: threads, descriptors, kilobytes of its own.
threads() { find "/proc/$1/task" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l; }
descriptors() { find "/proc/$1/fd" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l; }
own_kb() { awk '/^RssAnon/ {print $2}' "/proc/$1/status"; }
