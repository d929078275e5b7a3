#!/bin/bash
# What is written into a mirror appears once in its owner's segment, and once in every other mirror of it.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
start_daemon gamma
dm=${TAG}dm
there=$(mirror alpha "$dm")
shm alpha create "$dm" --shape 140 --dtype float32 >/dev/null
put alpha "$dm" 1
eventually 5 in_registry alpha "$dm" || fail "the segment is registered"

check "a one-way mirror on gamma" get gamma alpha "$dm"
check "... and on beta" get beta alpha "$dm"
check "... which is one-way" same "[false, false]" "$(mirror_of beta alpha "$dm" '[m["bidirectional"], "written_back" in m]')"
file=$(mirror_file beta alpha "$dm")
before=$(inode "$file")
check "asked for again as bidirectional, it becomes so" same "$file" "$(get_both beta alpha "$dm")"
check "... the same file" same "$before" "$(inode "$file")"
check "... and its owner listens" eventually 10 linked alpha "$dm" beta
check "asked for one-way, it stays bidirectional" same "$file" "$(get beta alpha "$dm")"
check "... it does" same true "$(mirror_of beta alpha "$dm" 'm["bidirectional"]')"

counters() { echo "$(counter alpha "$dm") $(counter beta "$there") $(counter gamma "$there")"; }
everywhere() { has alpha "$dm" "$1" && has beta "$there" "$1" && has gamma "$there" "$1"; }
# grown FRAMES: all three counters have, by exactly so many, and stay so.
grown() {
    local a b c wanted
    read -r a b c <<<"$start"
    wanted="$((a + $1)) $((b + $1)) $((c + $1))"
    sleep 0.6 # longer than a frame that goes round, and than the pause after which both sides are compared
    same "$wanted" "$(counters)"
}
start=$(counters)
put beta "$there" 2.5
check "written on beta: it is everywhere" eventually 5 everywhere 2.5
check "... each counter has grown by one" grown 1
put alpha "$dm" 3.5
check "written on alpha: it is everywhere" eventually 5 everywhere 3.5
check "... each counter has grown by one" grown 2
for value in 11 12 13 14 15 16 17 18 19 20; do
    if ((value % 2)); then put beta "$there" "$value"; else put alpha "$dm" "$value"; fi
    eventually 5 everywhere "$value" || fail "$value is everywhere"
done
check "ten more in turn: each counter has grown by ten" grown 12
put alpha "$dm" 20
put beta "$there" 20
check "the same value again is a frame all the same" grown 14

mine='[m["bidirectional"], m["connected"], m["echoes"], m["converged"], m["written_back"]["frames"], m["written_back"]["stale"]]'
check "status of the client: echoes and frames written back" same "[true, true, 7, 0, 7, 0]" "$(mirror_of beta alpha "$dm" "$mine")"
check "status of the owner: frames, and who wrote last" same '["beta", 7, {}, true, true]' \
    "$(published alpha "$dm" '[p["last_writer"]] + [x for w in p["written_by"] for x in (w["frames"], w["refused"], w["connected"], w["age_us"] >= 0)]')"
put alpha "$dm" 21
owner_wrote_last() { same alpha "$(published alpha "$dm" 'p["last_writer"]')"; }
check "... who is the owner itself now" eventually 5 owner_wrote_last
check "only beta writes" same '["beta"]' "$(published alpha "$dm" '[w["client"] for w in p["written_by"]]')"

# What the record says of the port, until release; then it is free.
port=$(registered alpha "$dm" connections | json '[r["client_pub_port"] for r in d if r["client_hostname"] == "beta"][0]')
can_bind() { python3 -c 'import socket, sys; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen()' "$port"; }
check "its port is taken" not can_bind
check "release" at beta release alpha "$dm"
check "... frees the port" eventually 5 can_bind
nobody_writes() { same "[]" "$(published alpha "$dm" 'p.get("written_by", [])')"; }
check "... the owner drops the link" eventually 5 nobody_writes
start="$(counter alpha "$dm") 0 $(counter gamma "$there")"
put alpha "$dm" 30
check "... the other mirror goes on" eventually 5 has gamma "$there" 30

finish
