#!/bin/bash
# A Python daemon owns the segment, daoserver mirrors it.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

start_redis
x=${TAG}x
segment=$x:8x6:float32
remote=$(mirror pyowner "$x")
port=$(free_port)
python_owner pyowner --segment "$segment" --port "$port" --check 1
start_daemon beta
start_daemon gamma

begun=$(date +%s%N)
check "get, though the owner looks only every 2 s" get beta pyowner "$x"
echo "      get took $((($(date +%s%N) - begun) / 1000000)) ms"
m() { status beta 'd["mirrors"][0]'"$1"; }
m_is() { same "$1" "$(m "$2")"; }
check "the record is the Python daemon's" same "$port" "$(m '["port"]')"
check "the first frame is the owner's nudge" eventually 5 m_is 1 '["frames"]'
check "... bit for bit" holds beta remote_pyowner_ 1 "$segment"
check "status names the wire" m_is python '["wire"]'
check "... and that losses are unknown" m_is false '["lost_known"]'
check "... and so is the latency" m_is '{"max": null, "p50": null, "p99": null}' '["latency_us"]'
check "... and the source's counter" m_is null '["source_counter"]'
check "connected, though nothing is sent" eventually 5 m_is true '["connected"]'
atime_now() { same true "$(shm beta info "$remote" --json | json "$begun <= d['atime'] <= $(date +%s%N)")"; }
check "the mirror's time is that of the arrival" atime_now

count=$(counter beta "$remote")
for number in 2 3 4 5 6; do
    kill -USR1 "${PEER[pyowner]}"
    check "frame $number" eventually 5 holds beta remote_pyowner_ "$number" "$segment"
done
check "the mirror's counter grew by one a frame" same $((count + 5)) "$(counter beta "$remote")"
check "... none is repeated" m_is 0 '["repeated"]'

check "a second mirror elsewhere" get gamma pyowner "$x"
check "the owner's nudge for it is counted as repeated here" eventually 5 m_is 1 '["repeated"]'
check "... and is in the other mirror" eventually 5 holds gamma remote_pyowner_ 6 "$segment"
check "release" at beta release pyowner "$x"
check "the owner evicts who left" eventually 10 true_of pyowner 'last("evicted").get("client") == "beta"'
kill -USR1 "${PEER[pyowner]}"
check "the other's stream goes on" eventually 5 holds gamma remote_pyowner_ 7 "$segment"
check "... and its mirror again" get beta pyowner "$x"
check "... with the frame" eventually 5 holds beta remote_pyowner_ 7 "$segment"

# Killed and started again: it has forgotten everybody, and clears nothing.
end_peer pyowner KILL
unlinked() { m_is false '["connected"]'; }
check "a dead owner is noticed" eventually 10 unlinked
python_owner pyowner --segment "$segment" --port "$port" --check 1 --first 100
check "the mirrors ask it again by themselves" eventually 20 holds beta remote_pyowner_ 100 "$segment"
kill -USR1 "${PEER[pyowner]}"
check "... both" eventually 20 holds gamma remote_pyowner_ 101 "$segment"
end_peer pyowner
python_owner pyowner --segment "$segment" --port "$(free_port)" --check 1 --first 200
check "on another port: the mirrors follow" eventually 20 holds beta remote_pyowner_ 200 "$segment"
kill -USR1 "${PEER[pyowner]}"
check "... both" eventually 20 holds gamma remote_pyowner_ 201 "$segment"

finish
