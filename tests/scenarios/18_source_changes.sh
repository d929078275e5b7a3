#!/bin/bash
# The source segment is removed, made again as it was, made again with another shape: everything follows.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x
remote=$(mirror alpha "$x")
file=$(mirror_file beta alpha "$x")
reads() { [[ "$(shm beta read "$remote" --json | json 'd["data"][-1][-1]')" == "$1" ]]; }
shape() { shm beta info "$remote" --json | json 'd["shape"]'; }
shape_is() { same "$1" "$(shape)"; }
dtype_is() { same "$1" "$(shm beta info "$remote" --json | json 'd["dtype"]')"; }
registered_is() { same "$1" "$(registered alpha "$x" dimensions) $(registered alpha "$x" dtype)"; }

shm alpha create "$x" --shape 8x6 --dtype uint16 >/dev/null
shm alpha write "$x" --fill 3
eventually 5 in_registry alpha "$x" || fail "the segment is registered"
check "get" get beta alpha "$x"
check "a frame is there" eventually 3 reads 3
before=$(inode "$file")
count=$(counter beta "$remote")

shm alpha rm "$x"
check "removed: its registry entry goes within 3 s" eventually 3 not in_registry alpha "$x"
check "removed: all keys of it" same "" "$(redis --scan --pattern "dao:machines:alpha:shm:$x:*" | grep -v ':connections$')"
check "removed: the mirror keeps its last frame" reads 3

shm alpha create "$x" --shape 8x6 --dtype uint16 >/dev/null
shm alpha write "$x" --fill 4
check "made again, same shape: frames within 3 s" eventually 3 reads 4
check "... in the same file" same "$before" "$(inode "$file")"
check "... registered" eventually 3 registered_is "[8, 6] uint16"
grown() { (($(counter beta "$remote") > count)); }
check "... and the mirror's counter only grows" grown

shm alpha create "$x" --shape 4x10 --dtype uint16 >/dev/null
shm alpha write "$x" --fill 5
check "another shape: registered within 3 s" eventually 3 registered_is "[4, 10] uint16"
check "another shape: the mirror follows within 3 s" eventually 3 shape_is "[4, 10]"
check "... with its frame" eventually 3 reads 5

shm alpha create "$x" --shape 4x10 --dtype float32 >/dev/null
shm alpha write "$x" --fill 6.5
check "another type: registered within 3 s" eventually 3 registered_is "[4, 10] float32"
check "another type: the mirror follows within 3 s" eventually 3 dtype_is float32
check "... with its frame" eventually 3 reads 6.5

# Again and again, while somebody writes: what counts is where it ends.
for shape in 3x3 5x7 3x3 6x2 64x64 2x2; do
    shm alpha create "$x" --shape "$shape" --dtype int32 >/dev/null
    shm alpha write "$x" --fill 1 --rate 100 --count 10
done
shm alpha write "$x" --fill 77
check "many changes in a row: the mirror has the last" eventually 5 shape_is "[2, 2]"
check "... and its frame" eventually 5 reads 77

# The owner's daemon is away while the shape changes.
kill_daemon alpha
shm alpha create "$x" --shape 9x9 --dtype int16 >/dev/null
shm alpha write "$x" --fill 8
start_daemon alpha
check "changed while the owner was away: registered" eventually 3 registered_is "[9, 9] int16"
check "... the mirror follows" eventually 10 shape_is "[9, 9]"
check "... with its frame" eventually 5 reads 8

finish
