#!/bin/bash
# TLS to Redis: frames flow, certificates and names are verified, a Redis that asks for our certificate gets it, and
# nothing hangs. With a binary that has TLS: this one, or the static one.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=secrets.sh
. "$(dirname "$0")/secrets.sh"
need_python
unset REDISCLI_AUTH

for name in openssl redis-server; do command -v "$name" >/dev/null || skip "$name is not installed"; done
without_tls() { "$1" list --redis-tls --redis-port 1 2>&1 | grep -q "built without TLS"; }
if without_tls "$DAOSERVER"; then
    check "a binary without TLS says so" fails 5 "this daoserver was built without TLS" "$DAOSERVER" list --redis-tls
    [[ -x ${DAOSERVER_STATIC:-} ]] || skip "the binary was built without TLS, and DAOSERVER_STATIC names no other"
    DAOSERVER=$DAOSERVER_STATIC
    without_tls "$DAOSERVER" && skip "neither binary has TLS"
fi

# authority NAME, certificate NAME AUTHORITY SUBJECT_ALT_NAME: files NAME.crt and NAME.key.
mkdir "$WORK/tls" && cd "$WORK/tls" || exit
new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
authority() { openssl req -x509 "${new_key[@]}" -days 2 -subj "/CN=$1" -keyout "$1.key" -out "$1.crt"; }
certificate() {
    openssl req "${new_key[@]}" -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" &&
        openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 2 -out "$1.crt" \
            -extfile <(echo "subjectAltName=$3")
}
make_all() {
    authority ours && authority strange && certificate by-address ours IP:127.0.0.1 &&
        certificate by-name ours DNS:localhost && certificate daemon ours DNS:daemon
}
make_all >"$WORK/openssl.log" 2>&1 || skip "openssl makes no certificates: $(tail -n 1 "$WORK/openssl.log")"

# tls_redis CERTIFICATE ASK_FOR_OURS: one that speaks nothing but TLS; sets REDIS_PORT and REDIS_PID.
tls_redis() {
    REDIS_PORT=$(free_port)
    redis-server --port 0 --tls-port "$REDIS_PORT" --bind 127.0.0.1 --save "" --appendonly no --dir "$WORK/tls" \
        --tls-cert-file "$1.crt" --tls-key-file "$1.key" --tls-ca-cert-file ours.crt --tls-auth-clients "$2" \
        >>"$WORK/redis.log" 2>&1 &
    REDIS_PID=$!
    PIDS+=("$REDIS_PID")
    if ! eventually 5 redis ping; then
        grep -qi "bad directive\|unknown\|without TLS" "$WORK/redis.log" && skip "this redis-server has no TLS"
        echo "Redis does not start" && exit 1
    fi
}
redis() {
    REDISCLI_AUTH=$(<"$WORK/secret") redis-cli -p "$REDIS_PORT" --tls --cacert "$WORK/tls/ours.crt" \
        --cert "$WORK/tls/daemon.crt" --key "$WORK/tls/daemon.key" "$@"
}
(umask 077 && : >"$WORK/secret")
ours=(--redis-tls --redis-ca "$WORK/tls/ours.crt")
identity=(--redis-cert "$WORK/tls/daemon.crt" --redis-key "$WORK/tls/daemon.key")

tls_redis by-address no
mkdir "$WORK/rts"
check "a certificate for an address is taken" at rts list "${ours[@]}"
by_name() { REDIS_IP=localhost at "$@"; }
check "not for a name" fails 7 "not valid for name" by_name rts list "${ours[@]}"
check "not from a strange authority" fails 7 "--redis-ca" at rts list --redis-tls --redis-ca "$WORK/tls/strange.crt"
check "not from one that this machine does not know" fails 7 "invalid peer certificate" at rts list --redis-tls
check "a daemon ends with the same sentence" fails 7 "invalid peer certificate" at rts --redis-tls
check "without TLS there is no answer from it" fails 7 "--redis-tls" at rts list
check "an authority without TLS is a mistake" fails 2 "--redis-ca needs --redis-tls" at rts list --redis-ca ours.crt
check "so is a key without its certificate" fails 2 "need each other" at rts list --redis-tls --redis-key daemon.key
check "and a file that is no certificate" fails 2 "it holds no certificate" at rts list --redis-tls --redis-ca daemon.csr

new_secret
echo "config set requirepass $(<"$WORK/secret")" | redis-cli -p "$REDIS_PORT" --tls --cacert ours.crt >/dev/null
check "TLS and no password" fails 7 "NOAUTH" at rts list "${ours[@]}"
ours+=(--redis-password-file "$WORK/secret")
start_daemon rts "${ours[@]}"
start_daemon gui "${ours[@]}"
main_job gui
known() { at gui list "${ours[@]}" --json | grep -q "\"dm$TAG\",\"wfs$TAG\""; }
check "list knows both" known
listen() { same 2 "$(redis pubsub channels | wc -l)"; }
check "both daemons listen for wake-ups" eventually 5 listen
check "the password is in no log, command line, status or answer" hidden rts gui

# A Redis that hangs, and one that comes back empty.
kill -STOP "$REDIS_PID"
SECONDS=0
check "a Redis that hangs is given up" fails 7 "it does not answer in time" at gui list "${ours[@]}"
check "soon" test "$SECONDS" -le 8
check "frames come all the same" eventually 5 flows gui "$(mirror rts "wfs$TAG")"
kill -CONT "$REDIS_PID"
check "when it goes on it is used again" eventually 10 known
echo flushall | redis >/dev/null
check "and filled again when it is emptied" eventually 10 known
check "a daemon stops in order" kill_daemon gui TERM
check "the other one, too" kill_daemon rts TERM
check "their keys are gone" same "" "$(redis keys 'dao:machines:*')"

# Who accepts and says nothing.
port=$(free_port)
python3 -ISc 'import socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
time.sleep(1000)' "$port" &
PIDS+=("$!")
there() { (exec 3<>"/dev/tcp/127.0.0.1/$port"); }
eventually 5 there
silent() { REDIS_PORT=$port at rts list "${ours[@]}"; }
SECONDS=0
check "a handshake that is not answered ends" fails 7 "it does not answer in time" silent
check "soon" test "$SECONDS" -le 8

: >"$WORK/secret"
tls_redis by-name yes
ours=(--redis-tls --redis-ca "$WORK/tls/ours.crt")
REDIS_IP=localhost
check "a Redis that asks for our certificate refuses without" one_sentence 7 at rts list "${ours[@]}"
check "with it, and by name, it is open" at rts list "${ours[@]}" "${identity[@]}"
start_daemon rts "${ours[@]}" "${identity[@]}"
check "to a daemon, too" kill_daemon rts TERM

REDIS_IP=127.0.0.1
start_redis
check "a Redis without TLS is named as such" fails 7 "no TLS on this port" at rts list --redis-tls --redis-ca "$WORK/tls/ours.crt"
finish
