#!/bin/bash
# --allow on machines with addresses of their own: who is not in it gets no record and no connection, and is logged and
# counted; who is in it notices nothing.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

machines alpha beta gamma
start_daemon alpha --allow "$(address beta)/32" --allow 10.99.0.0/16
start_daemon beta --allow "$(address alpha)"
start_daemon gamma
dm=${TAG}dm
there=$(mirror alpha "$dm")
shm alpha create "$dm" --shape 140 --dtype float32 >/dev/null
put alpha "$dm" 1
eventually 5 in_registry alpha "$dm" || fail "the segment is registered"
refused() { status "$1" 'd["counters"]["peers_refused"]'; }
logged() { grep -qF -e "$2" "$WORK/$1.log"; }

check "beta is allowed" get_both beta alpha "$dm"
check "... the owner listens" eventually 10 linked alpha "$dm" beta
put beta "$there" 2
check "... and gets what beta writes" eventually 5 has alpha "$dm" 2
put alpha "$dm" 3
check "... and beta what alpha writes" eventually 5 has beta "$there" 3
check "nobody was refused" same "0 0" "$(refused alpha) $(refused beta)"

# The request itself.
check "gamma is not allowed: it gets no mirror" fails 4 "did not start publishing SHM '$dm'" \
    at gamma get alpha "$dm" --timeout 3
check "... nor write" fails 4 "did not start publishing SHM '$dm'" at gamma get alpha "$dm" --bidirectional --timeout 3
requests=$(refused alpha)
check "... is counted" test "$requests" -ge 2
check "... and logged with its address" logged alpha "the request of gamma ($(address gamma)) for '$dm' is refused"
check "... and is no client" same '["beta"]' "$(published alpha "$dm" 'p["clients"]')"

# The connection, past the registry: a subscriber of everything, by hand (ZMTP 3.0, no security). It says how many frames
# it got, and whether it was let in.
cat >"$WORK/subscribe.py" <<'PYTHON'
import socket, sys, time
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
peer.settimeout(0.3)
peer.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31))
ready = b"\x05READY" + b"\x0bSocket-Type" + (3).to_bytes(4, "big") + b"SUB"
steps = [ # when so much has come, this goes out: READY, and, once we are in, a subscription to everything
    (lambda got: len(got) >= 64, b"\x04" + bytes([len(ready)]) + ready),
    (lambda got: b"READY" in got[64:], b"\x00\x01\x01"),
]
got, end = b"", time.monotonic() + 4
while time.monotonic() < end:
    try:
        data = peer.recv(65536)
        if not data:
            break
        got += data
        if steps and steps[0][0](got):
            peer.sendall(steps.pop(0)[1])
    except TimeoutError:
        pass
    except OSError:
        break
print("in" if b"READY" in got[64:] else "out", "frames" if b"frameData" in got or b"daoFrame" in got else "nothing")
PYTHON
subscribe() { on "$1" python3 "$WORK/subscribe.py" "$2" "$3"; }
# While frames come.
writer alpha "$dm" --rate 100
port=$(published alpha "$dm" 'p["port"]')
check "a subscriber from an allowed address gets frames" same "in frames" "$(subscribe beta "$(address alpha)" "$port")"
check "one from another address gets nothing, and is not let in" same "out nothing" "$(subscribe gamma "$(address alpha)" "$port")"
check "... it is counted" test "$(refused alpha)" -gt "$requests"
check "... and logged with its address" logged alpha "$(address gamma) wants to connect and is not one of --allow's"
back=$(registered alpha "$dm" connections | json '[r["client_pub_port"] for r in d if r["bidirectional"]][0]')
check "the write-back's port is guarded by the client's --allow" same "out nothing" "$(subscribe gamma "$(address beta)" "$back")"
check "... counted there" test "$(refused beta)" -ge 1
check "... logged there" logged beta "$(address gamma) wants to connect and is not one of --allow's"
check "the allowed stream goes on" eventually 5 flows beta "$there"
kill "$WRITER"
wait "$WRITER" 2>/dev/null
put beta "$there" 5
check "... both ways" eventually 5 has alpha "$dm" 5
check "without --allow anybody gets a mirror" shm gamma create "${TAG}free" --shape 4 --dtype uint8
eventually 5 in_registry gamma "${TAG}free"
check "... of gamma's" get beta gamma "${TAG}free"
check "an address that makes no sense: exit 2" fails 2 "--allow" "$DAOSERVER" --allow 10.0.0.0/99

finish
