#!/bin/bash
# Garbage in every kind of key and on the control socket: a warning that names the key, and nothing else changes.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

start_redis
start_daemon alpha
start_daemon beta
x=${TAG}x y=${TAG}y
remote=$(mirror alpha "$x")
shm alpha create "$x" --shape 16x16 --dtype uint16 >/dev/null
shm alpha create "$y" --shape 16x16 --dtype uint16 >/dev/null
writer alpha "$x" --rate 200
sees_segments() { at beta list --json | grep -q "\"$x\"" && at beta list --json | grep -q "\"$y\""; }
eventually 5 sees_segments
check "get" get beta alpha "$x"
check "the stream goes" eventually 5 flows beta "$remote"

head -c 400000 /dev/zero | tr '\0' 'x' >"$WORK/huge"
printf '\377\376\001\200"' >"$WORK/notext"
python3 -c 'print("[" * 100000)' >"$WORK/nested"
echo '{"a": {"b": [1, 2' >"$WORK/half"
echo '[{"server_ip": 7, "port": "x", "transport": [], "client_hostname": "../../x"}]' >"$WORK/wrong"

warnings() { grep -cF "'$2' is ignored" "$WORK/$1.log"; }
more_warnings() { (($(warnings "$1" "$2") > $3)); }
both_serve() {
    at alpha status && at beta status && at alpha list && at beta list &&
        kill -0 "${DAEMON[alpha]}" "${DAEMON[beta]}" && eventually 5 flows beta "$remote"
}
# noticed HOST KEY: every kind of garbage is put there in turn, and each is warned of by that daemon in its own words.
noticed() {
    local host=$1 key=$2 kind before
    for kind in huge notext half nested wrong; do
        before=$(warnings "$host" "$key")
        redis -x set "$key" <"$WORK/$kind" >/dev/null
        eventually 5 more_warnings "$host" "$key" "$before" || { echo "no warning of $key: $kind" && return 1; }
    done
}
# put_all KEY: every kind of garbage in turn, of the wrong type at last; whoever reads it goes on.
put_all() {
    local key=$1 kind
    for kind in huge notext nested half wrong; do
        redis -x set "$key" <"$WORK/$kind" >/dev/null
        at beta list >/dev/null 2>>"$WORK/list.log" || return 1
        at alpha list >/dev/null 2>>"$WORK/list.log" || return 1
    done
    redis del "$key" >/dev/null
    redis rpush "$key" 1 2 3 >/dev/null
    at beta list >/dev/null 2>>"$WORK/list.log"
}

# What an owner reads: requests and heartbeats for its segments.
check "requests: garbage is warned of by name" noticed alpha "dao:connections:alpha:$y"
check "... nothing is published for it" same "[\"$x\"]" "$(status alpha '[p["shm"] for p in d["publishers"]]')"
check "... both serve" both_serve
check "... a real request is served all the same" get beta alpha "$y"
at beta release alpha "$y"
redis del "dao:connections:alpha:$y" >/dev/null
before=$(warnings alpha "dao:connections:alpha:$y")
redis rpush "dao:connections:alpha:$y" 1 >/dev/null
check "requests: of the wrong type: warned of by name" eventually 5 more_warnings alpha "dao:connections:alpha:$y" "$before"
check "requests: of the wrong type: a real request is served all the same" at beta get alpha "$y" --timeout 10
check "... warned of by name" more_warnings beta "dao:connections:alpha:$y" 0
at beta release alpha "$y"

redis set "dao:connections:alpha:$y" '{"client_ip": "127.0.0.1", "client_hostname": "../../evil", "transport": "zmq", "bidirectional": false, "client_pub_port": null}' >/dev/null
check "a request of a host that would leave the directory is warned of" eventually 5 grep -qE "evil" "$WORK/alpha.log"
redis del "dao:connections:alpha:$y" >/dev/null
redis set "dao:connections:alpha:../../etc/passwd" "$(cat "$WORK/wrong")" >/dev/null
check "a request for a name that would leave the directory changes nothing" both_serve

check "client heartbeats: garbage" put_all "dao:heartbeats:alpha:$x:ghost"
check "... both serve" both_serve
redis set "dao:heartbeats:alpha:$x:../../ghost" 1 >/dev/null
redis set "dao:heartbeats:alpha:::::" 1 >/dev/null

# What a client reads: records, dimensions, dtype, address.
for field in connections dimensions dtype; do
    check "$field: garbage" put_all "dao:machines:alpha:shm:$y:$field"
    redis del "dao:machines:alpha:shm:$y:$field" >/dev/null
done
for field in ip role last_connect hostname; do
    check "a machine's $field: garbage" put_all "dao:machines:ghost:$field"
done
check "... both serve" both_serve
check "... warned of by name" eventually 5 grep -q "dao:machines:ghost:" "$WORK/beta.log" "$WORK/alpha.log" "$WORK/list.log"

# A machine whose every value is nonsense: `get` says so and ends.
redis del dao:machines:ghost:ip dao:machines:ghost:hostname dao:machines:ghost:role dao:machines:ghost:last_connect >/dev/null
redis mset dao:machines:ghost:hostname ghost dao:machines:ghost:ip not-an-ip dao:machines:ghost:shm:s:dimensions '[-1, 1e99]' \
    dao:machines:ghost:shm:s:dtype object dao:machines:ghost:shm:s:connections '[[[' >/dev/null
check "get of nonsense: exit 3" fails 3 "No SHM 's' registered for host 'ghost'." at beta get ghost s
check "... warned of by name" more_warnings beta dao:machines:ghost:shm:s:dimensions 0
redis mset dao:machines:ghost:shm:s:dimensions '[4294967295, 4294967295, 4294967295]' dao:machines:ghost:shm:s:dtype float64 >/dev/null
check "get of a segment too large for any machine ends" not timeout 10 "$DAOSERVER" get ghost s --timeout 2 \
    --redis-port "$REDIS_PORT" --hostname beta --shm-dir "$WORK/beta"
redis mset dao:machines:ghost:shm:s:dimensions '[4]' dao:machines:ghost:ip 127.0.0.1 >/dev/null
redis set dao:machines:ghost:shm:s:connections '[{"server_ip": "127.0.0.1", "port": 99999, "transport": "zmq", "client_hostname": "beta", "client_ip": "127.0.0.1", "bidirectional": false, "client_pub_port": null}]' >/dev/null
check "get of a port that cannot be ends" not timeout 10 "$DAOSERVER" get ghost s --timeout 2 \
    --redis-port "$REDIS_PORT" --hostname beta --shm-dir "$WORK/beta"
check "... both serve" both_serve

# The records of a stream that runs are overwritten: it goes on, or comes back.
record_is_back() { [[ $(registered alpha "$x" connections | json 'd[0]["client_hostname"]') == beta ]]; }
# The owner may put them right before the client has seen them: then once more.
seen_by_client() {
    redis -x set "dao:machines:alpha:shm:$x:connections" <"$WORK/$kind" >/dev/null
    eventually 3 more_warnings beta "dao:machines:alpha:shm:$x:connections" "$before"
}
for kind in huge notext nested half wrong; do
    before=$(warnings beta "dao:machines:alpha:shm:$x:connections")
    check "the records of a running stream are garbage ($kind): warned of by name" eventually 15 seen_by_client
    check "... the owner puts them right" eventually 5 record_is_back
    check "... it goes on" eventually 10 flows beta "$remote"
done
before=$(warnings beta "dao:machines:alpha:shm:$x:connections")
wrong_type_seen() {
    redis del "dao:machines:alpha:shm:$x:connections" >/dev/null
    redis rpush "dao:machines:alpha:shm:$x:connections" 1 >/dev/null
    eventually 3 more_warnings beta "dao:machines:alpha:shm:$x:connections" "$before"
}
check "... of the wrong type: warned of by name" eventually 15 wrong_type_seen
check "... it goes on" eventually 10 flows beta "$remote"

# The control socket.
cat >"$WORK/control.py" <<'PYTHON'
"""Garbage lines to a control socket; after each a ping is answered, on the same connection or a new one."""
import json, os, socket, sys
path = sys.argv[1]
def connect():
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(path)
    return connection
lines = [b"", b"{", b"[]", b"7", b"\xff\xfe\x00", b"null", b'{"op": 7}', b'{"id": 1}', b'{"id": {}, "op": "nonsense"}', b"[" * 50000,
         b'{"id": 1, "op": "get_remote_shm"}', b'{"id": 1, "op": "get_remote_shm", "hostname": 1, "shm": []}',
         b'{"id": 1, "op": "get_remote_shm", "hostname": "../x", "shm": "../../y"}',
         b'{"id": 1, "op": "get_remote_shm", "hostname": "alpha", "shm": "x", "timeout_s": -1}',
         b'{"id": 1, "op": "get_remote_shm", "hostname": "alpha", "shm": "x", "timeout_s": 1e308}',
         b'{"id": 1, "op": "cleanup_stale_machines", "ttl_seconds": "x"}', b'{"id": 1, "op": "deregister_machine", "hostname": "a:b"}',
         os.urandom(5000).replace(b"\n", b" ")]
for line in lines:
    with connect() as connection:
        connection.sendall(line + b"\n")
        connection.sendall(b'{"id": "after", "op": "ping"}\n')
        for answer in connection.makefile("rb"):
            answer = json.loads(answer)
            if answer.get("id") == "after":
                assert "ok" in answer, answer
                break
            assert "kind" in answer["error"] and answer["error"]["message"], answer
        else:
            # It may hang up on what is hopeless; then the next connection must be served.
            print("hung up after", line[:40])
with connect() as connection:  # half a line, and away
    connection.sendall(b'{"id": 1, "op": "pi')
with connect() as connection:  # a line without end
    try:
        for _ in range(64): connection.sendall(b"x" * 65536)
    except OSError: pass
with connect() as connection:
    connection.sendall(b'{"id": 5, "op": "ping"}\n')
    assert "ok" in json.loads(connection.makefile("rb").readline())
PYTHON
check "garbage on the control socket: errors, and the next line is served" python3 "$WORK/control.py" "$WORK/beta/.daoserver-beta.sock"
check "... both serve" both_serve
check "no thread has panicked" not grep -qi panic "$WORK/alpha.log" "$WORK/beta.log"
check "nothing was written outside" test ! -e "$WORK/evil.im.shm"

finish
