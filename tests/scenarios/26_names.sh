#!/bin/bash
# Names that would leave the directory, or that the registry's keys could not hold: one sentence, the right exit code,
# and nothing written anywhere.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
x=${TAG}x
shm alpha create "$x" --shape 4 --dtype uint8 >/dev/null
listing() { find "$WORK" /tmp /dev/shm -maxdepth 2 \( -name "*evil*" -o -name "*$TAG*" \) 2>/dev/null | sort; }
before=$(listing)

for host in "a:b" "../evil" "a/b" ".." "" "a b" $'a\nb' "$(printf 'x%.0s' {1..300})" "*" "[a]"; do
    shown=${host:0:20}
    shown=${shown//$'\n'/\\n}
    check "get: host '$shown'" one_sentence "1 2 3" at alpha get "$host" "$x" --timeout 2
    check "release: host '$shown'" one_sentence "1 2 3" at alpha release "$host" "$x"
    check "deregister: host '$shown'" one_sentence "1 2 3" at alpha deregister "$host"
    [[ $host == "" ]] && continue
    check "--hostname '$shown': exit 2" one_sentence "2" timeout 5 "$DAOSERVER" --redis-host 127.0.0.1 \
        --redis-port "$REDIS_PORT" --shm-dir "$WORK" --hostname "$host" --control "$WORK/evil.sock"
done
for name in "../evil" "a/../../evil" ".." "" $'a\nb' "$(printf 'x%.0s' {1..300})"; do
    shown=${name:0:20}
    shown=${shown//$'\n'/\\n}
    check "get: segment '$shown'" one_sentence "1 2 3" at alpha get alpha "$name" --timeout 2
    check "release: segment '$shown'" one_sentence "1 2 3" at alpha release alpha "$name"
done

# In the registry, put there by somebody else.
redis mset dao:machines:../evil:hostname ../evil dao:machines:../evil:ip 127.0.0.1 \
    "dao:machines:../evil:shm:$x:dimensions" "[4]" "dao:machines:../evil:shm:$x:dtype" uint8 >/dev/null
redis mset "dao:machines:good:hostname" good dao:machines:good:ip 127.0.0.1 \
    "dao:machines:good:shm:../../evil:dimensions" "[4]" "dao:machines:good:shm:../../evil:dtype" uint8 >/dev/null
check "a machine in the registry that would leave the directory" one_sentence "1 2 3" at alpha get ../evil "$x" --timeout 2
check "a segment in the registry that would leave it" one_sentence "1 2 3" at alpha get good ../../evil --timeout 2
check "list leaves them out" not sh -c "'$DAOSERVER' list --redis-port $REDIS_PORT --json 2>/dev/null | grep evil"

# Files whose names the registry cannot hold.
odd=("with space" -dash $'new\nline' "" $'\xff\xfe')
for file in "${odd[@]}"; do cp "$WORK/alpha/$x.im.shm" "$WORK/alpha/$file.im.shm"; done
spaced() { same uint8 "$(registered alpha with_space dtype)"; }
check "a space in a file's name becomes _" eventually 5 spaced
check "no UTF-8 in a file's name: said" grep -q 'is no UTF-8' "$WORK/alpha.log"
check "a line feed in a file's name: said in one line" grep -qF 'new\nline.im.shm is not served: ' "$WORK/alpha.log"
check "no key for them" same "" "$(redis --scan --pattern 'dao:machines:alpha:shm:*' | grep -v -e "shm:$x:" -e 'shm:with_space:' -e 'shm:-dash:')"
for file in "${odd[@]}"; do rm -f "$WORK/alpha/$file.im.shm"; done

check "the daemon lives" at alpha status
check "nothing was written outside" same "$before" "$(listing)"

finish
