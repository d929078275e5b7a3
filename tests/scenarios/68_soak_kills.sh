#!/bin/bash
# An owner and a client are killed with -9 at random moments, while they start too, again and again under three streams.
# Streams come back each time; who is not killed keeps the threads, descriptors and memory that it had; no file,
# semaphore, port or key is left behind. SOAK_KILLS=N for another number than 40 (200, as in the whole test, take
# about three minutes).
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=faults.sh
. "$(dirname "$0")/faults.sh"
need_python
((KILLS = ${SOAK_KILLS:-40}))

# alpha owns x and dm, gamma owns z; beta mirrors all three, gamma x and dm. alpha and beta are killed, gamma never.
start_redis
# As on two machines: neither finds the other at a port that was its own.
base=$(free_port)
declare -A BASE=([alpha]=$base [beta]=$((base + 100)))
start_daemon alpha --base-pub-port "${BASE[alpha]}"
start_daemon beta --base-pub-port "${BASE[beta]}"
start_daemon gamma
x=${TAG}x z=${TAG}z dm=${TAG}dm
shm alpha create "$x" --shape 64x64 --dtype uint16 --depth 16 >/dev/null
shm gamma create "$z" --shape 64x64 --dtype uint16 --depth 16 >/dev/null
shm alpha create "$dm" --shape 140 --dtype float32 >/dev/null
for owner in alpha gamma; do
    name=$x
    [[ $owner == gamma ]] && name=$z
    writer "$owner" "$name" --rate 200
done
writer alpha "$dm" --rate 20
eventually 5 in_registry gamma "$z" || fail "z is registered"
eventually 5 in_registry alpha "$dm" || fail "dm is registered"
check "beta mirrors x" get beta alpha "$x"
check "... z" get beta gamma "$z"
check "... and dm, to write" get_both beta alpha "$dm"
check "gamma mirrors x" get gamma alpha "$x"
check "... and dm, to write" get_both gamma alpha "$dm"

# Every mirror that there should be: its host and its name.
MIRRORS=("beta $(mirror alpha "$x")" "beta $(mirror gamma "$z")" "beta $(mirror alpha "$dm")"
    "gamma $(mirror alpha "$x")" "gamma $(mirror alpha "$dm")")
declare -A SEEN=()
# All have newer frames than at the last look.
all_flow() {
    local pair host name now good=0
    for pair in "${MIRRORS[@]}"; do
        read -r host name <<<"$pair"
        now=$(counter "$host" "$name")
        ((now > SEEN[$pair])) || { echo "$pair stands at $now" && good=1; }
    done
    return "$good"
}
# back_again SECONDS: from what the mirrors have now, all go on. Keeps the longest time in `longest`.
longest=0
back_again() {
    local begun=${EPOCHREALTIME/./} pair host name end took
    for pair in "${MIRRORS[@]}"; do
        read -r host name <<<"$pair"
        SEEN[$pair]=$(counter "$host" "$name")
    done
    end=$((begun + $1 * 1000000))
    until all_flow >"$WORK/round.log" 2>&1; do
        ((${EPOCHREALTIME/./} < end)) || return 1
        sleep 0.05
    done
    took=$(((${EPOCHREALTIME/./} - begun) / 1000))
    ((took <= longest)) || longest=$took
}
check "all streams go" back_again 15
crash() { # crash HOST: kill -9, and it is none of ours any more
    local pid=${DAEMON[$1]} kept=() one
    kill_daemon "$1"
    for one in "${PIDS[@]}"; do [[ $one == "$pid" ]] || kept+=("$one"); done
    PIDS=("${kept[@]}")
}
# What there is, besides what grows with frames: of gamma, and on the machine. Redis' keys without heartbeats' own time.
of_gamma() { echo "$(threads "${DAEMON[gamma]}") $(descriptors "${DAEMON[gamma]}")"; }
# Of gamma's descriptors, those of its links to Redis.
links() { ss -Htnp "dport = :$REDIS_PORT" 2>/dev/null | grep -c "pid=${DAEMON[gamma]},"; }
files() { find "$WORK/alpha" "$WORK/beta" "$WORK/gamma" -mindepth 1 -printf '%P\n' | sort; }
semaphores() { find /dev/shm -maxdepth 1 -name "sem.*$TAG*" | sort; }
keys() { redis --scan --pattern 'dao:*' | grep -v '^dao:connections:' | sort; }
highest_port() { status alpha 'max(p[field] for p in d["publishers"] for field in ["port", "tcp_port"] if p.get(field))'; }
zmq_ports() { status alpha '{p["shm"]: p["port"] for p in d["publishers"]}'; }
lost() { status gamma '{m["shm"][len("'"$TAG"'"):]: {cause: n for cause, n in m["lost"].items() if n} for m in d["mirrors"]}'; }
frames() { status gamma 'sum(m["frames"] for m in d["mirrors"])'; }

# Some first, so that what is made once is there.
for host in alpha beta; do
    crash "$host"
    start_daemon "$host" --base-pub-port "${BASE[$host]}"
done
check "after the first two: all streams go" back_again 15
sleep 2
held=$(of_gamma) held_links=$(links) memory=$(own_kb "${DAEMON[gamma]}")
files >"$WORK/files.before" && semaphores >"$WORK/semaphores.before" && keys >"$WORK/keys.before"
begun_frames=$(frames) begun_lost=$(lost) begun_ports=$(zmq_ports) begun=$SECONDS

killed=0 rounds=0 failed_rounds=0
while ((killed < KILLS)); do
    for _ in 1 2 3 4 5; do
        ((killed < KILLS)) || break
        # Any moment of a start, or of the first second after it.
        sleep "0.$((RANDOM % 90 + 10))"
        host=alpha
        ((RANDOM % 2)) && host=beta
        crash "$host"
        killed=$((killed + 1))
        launch_daemon "$host" --base-pub-port "${BASE[$host]}"
    done
    rounds=$((rounds + 1))
    if ! { eventually 10 is_ready alpha && eventually 10 is_ready beta && back_again 20; }; then
        failed_rounds=$((failed_rounds + 1))
        echo "      after $killed kills: $(cat "$WORK/round.log")"
    fi
    answers gamma 3 >/dev/null || fail "gamma answers after $killed kills"
done
took=$((SECONDS - begun))
check "after each of $rounds rounds all streams came back, all five mirrors" same 0 "$failed_rounds"
check "gamma was never restarted" kill -0 "${DAEMON[gamma]}"
# Up to four links to Redis are kept when several were needed at the same time; without them it is the same number.
held_again() {
    local now_threads now_descriptors
    read -r now_threads now_descriptors <<<"$(of_gamma)"
    echo "$held, then $now_threads $now_descriptors; links to Redis: $held_links, then $(links)"
    ((now_threads == ${held% *} && now_descriptors <= ${held#* } + 4)) || return 1
    command -v ss >/dev/null || return 0
    same $((${held#* } - held_links)) $((now_descriptors - $(links)))
}
recovers "who is not killed: threads and descriptors are what they were ($held)" 10 held_again
grown=$(($(own_kb "${DAEMON[gamma]}") - memory))
check "... its memory, too: $memory kB and $grown kB more" test "$grown" -lt 2048
files_again() { files | diff "$WORK/files.before" -; }
recovers "no file is left behind" 5 files_again
semaphores_again() { semaphores | diff "$WORK/semaphores.before" -; }
check "no semaphore" semaphores_again
keys_again() { keys | diff "$WORK/keys.before" -; }
recovers "no key" 15 keys_again
check "no port: clients find alpha where it was" same "$begun_ports" "$(zmq_ports)"
check "... and it has not wandered: ports from $base on, $(highest_port) the highest" test "$(highest_port)" -lt $((base + 40))
check "alpha and beta are as small as at first" test "$(threads "${DAEMON[alpha]}")" -lt 40
echo "      $killed kills in $took s; $(($(frames) - begun_frames)) frames came to gamma; all back $longest ms after a round's last start at most"
echo "      lost of what was sent after it was back: $(lost) (before: $begun_lost)"
echo "      gamma: threads and descriptors $held, then $(of_gamma), links to Redis $held_links, then $(links); own memory $memory kB, then $(own_kb "${DAEMON[gamma]}") kB"

finish
