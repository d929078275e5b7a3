#!/bin/bash
# An owner with --read-only refuses to be written, and serves its segments all the same.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha --read-only
start_daemon beta
start_daemon gamma
dm=${TAG}dm
there=$(mirror alpha "$dm")
shm alpha create "$dm" --shape 140 --dtype float32 >/dev/null
put alpha "$dm" 1
eventually 5 in_registry alpha "$dm" || fail "the segment is registered"

refused() { fails 6 "'alpha' is read-only" get_both "$1" alpha "$dm"; }
check "get --bidirectional: exit 6, with the owner's name" refused beta
no_mirror() { same "[]" "$(status "$1" 'd["mirrors"]')" && test ! -e "$(mirror_file "$1" alpha "$dm")"; }
check "... and leaves no mirror" eventually 5 no_mirror beta
check "one-way works" get beta alpha "$dm"
put alpha "$dm" 2
check "... its frames come" eventually 5 has beta "$there" 2
check "asked for again as bidirectional: exit 6" refused beta
put alpha "$dm" 3
check "... and the mirror goes on as it was" eventually 5 has beta "$there" 3
one_way() { same "[true, false]" "$(mirror_of beta alpha "$dm" '[m["connected"], m["bidirectional"]]')"; }
check "... one-way" eventually 5 one_way
count=$(counter alpha "$dm")
put beta "$there" 666
sleep 0.5
check "what is written into it stays there" same "$count" "$(counter alpha "$dm")"
check "... the owner has its own" has alpha "$dm" 3
put alpha "$dm" 4
check "... and the owner's next frame comes" eventually 5 has beta "$there" 4

check "another machine: the same" refused gamma
check "... and one-way" get gamma alpha "$dm"
kill_daemon beta
start_daemon beta
put alpha "$dm" 5
check "the client's daemon starts anew: its mirror is there, one-way" eventually 10 has beta "$there" 5
check "nobody writes" same "[]" "$(published alpha "$dm" 'p.get("written_by", [])')"
kill_daemon alpha
start_daemon alpha
eventually 10 in_registry alpha "$dm"
check "an owner started anew without --read-only is written" get_both beta alpha "$dm"
check "... it listens" eventually 10 linked alpha "$dm" beta
put beta "$there" 6
check "... and gets the frame" eventually 5 has alpha "$dm" 6
kill_daemon alpha
start_daemon alpha --read-only
put alpha "$dm" 7
check "started anew with it: the bidirectional mirror goes on one-way" eventually 20 one_way
check "... with the owner's frames" eventually 10 has beta "$there" 7
check "... and its daemon's log says why" grep -q "'alpha' is read-only" "$WORK/beta.log"

finish
