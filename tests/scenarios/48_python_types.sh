#!/bin/bash
# All twelve element types with one, two and three axes go both ways between the daemons, bit for bit.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers

start_redis
segments=() arguments=()
for dtype in uint8 int8 uint16 int16 uint32 int32 uint64 int64 float32 float64 complex64 complex128; do
    for shape in 140 6x8 2x3x5; do
        segments+=("$TAG${dtype}_${shape//x/_}:$shape:$dtype")
        arguments+=(--segment "${segments[-1]}")
    done
done

# Ours to Python: each segment holds frame 41, then 42.
start_daemon alpha
mkdir "$WORK/raw41" "$WORK/raw42"
for first in 41 42; do
    frames make "$WORK/raw$first" "${segments[@]}" --first "$first" || fail "frames can be made"
done
for segment in "${segments[@]}"; do
    IFS=: read -r name shape dtype <<<"$segment"
    shm alpha create "$name" --shape "$shape" --dtype "$dtype" >/dev/null
    shm alpha write "$name" --raw "$WORK/raw41/$name.raw" --count 1
done
all_registered() { same "${#segments[@]}" "$(redis --scan --pattern 'dao:machines:alpha:shm:*:dtype' | wc -l)"; }
check "${#segments[@]} segments are registered" eventually 10 all_registered
peer client python_client --owner alpha "${arguments[@]}"
all_at() { same "${#segments[@]}" "$(said client "len({l['segment'] for l in lines if l['event'] == 'progress' and l['number'] == $1 and l['bad'] == 0})")"; }
check "a Python client has each one's current frame, bit for bit" eventually 30 all_at 41
for segment in "${segments[@]}"; do
    shm alpha write "${segment%%:*}" --raw "$WORK/raw42/${segment%%:*}.raw" --count 1
done
check "... and the next" eventually 30 all_at 42
end_peer client
check "none was bad" same 0 "$(said client 'sum(l["bad"] for l in lines if l["event"] == "end") + len([l for l in lines if l["event"] == "bad"])')"
echo "      $(said client 'sum(l["frames"] for l in lines if l["event"] == "end")') frames of ${#segments[@]} segments"
kill_daemon alpha TERM

# Python to ours.
python_owner pyowner "${arguments[@]}" --port "$(free_port "${#segments[@]}")" --poll 0.2 --first 41
start_daemon beta
# All at once: each waits for its own answer.
asking=()
for segment in "${segments[@]}"; do
    get beta pyowner "${segment%%:*}" >>"$WORK/get.log" 2>&1 &
    asking+=("$!")
done
for pid in "${asking[@]}"; do wait "$pid" || fail "get: $(cat "$WORK/get.log")"; done
check "every mirror has the current frame, bit for bit" eventually 30 holds beta remote_pyowner_ 41 "${segments[@]}"
kill -USR1 "${PEER[pyowner]}"
check "... and the next" eventually 30 holds beta remote_pyowner_ 42 "${segments[@]}"
check "nothing was refused" same '{}' "$(status beta '{k: v for m in d["mirrors"] for k, v in m["refused"].items()}')"
same_info() { # the shape and type of a mirror are the source's
    local name shape dtype
    for segment in "${segments[@]}"; do
        IFS=: read -r name shape dtype <<<"$segment"
        same "$shape $dtype" "$(shm beta info "$(mirror pyowner "$name")" --json | json '"x".join(map(str, d["shape"])) + " " + d["dtype"]')" || return 1
    done
}
check "shapes and types of the mirrors are the sources'" same_info

finish
