#!/bin/bash
# What a service manager hears: READY once the control socket answers, signs of life for as long as the daemon answers
# itself, STOPPING. And scripts/daoserver.service is one that systemd takes.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

# manager ADDRESS FILE: writes what it is told, a line each; behind READY what the control socket $3 answers just then.
cat >"$WORK/manager.py" <<'PYTHON'
import socket, sys
address, file, control = sys.argv[1:]
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.bind("\0" + address[1:] if address.startswith("@") else address)
with open(file, "a", buffering=1) as told:
    told.write("listening\n")
    while True:
        for line in receiver.recv(65536).decode().split("\n"):
            if line == "READY=1":
                daemon = socket.socket(socket.AF_UNIX)
                daemon.settimeout(5)
                daemon.connect(control)
                daemon.sendall(b'{"id": 1, "op": "ping"}\n')
                line += " " + daemon.makefile().readline().strip()
            told.write(line + "\n")
PYTHON
manager() {
    : >"$WORK/told"
    python3 -IS "$WORK/manager.py" "$1" "$WORK/told" "$WORK/rts/.daoserver-rts.sock" 2>"$WORK/manager.log" &
    PIDS+=("$!")
    eventually 5 grep -q listening "$WORK/told"
}
told() { grep -q "^$1" "$WORK/told"; }
signs() { grep -c '^WATCHDOG=1$' "$WORK/told"; }
more_signs() {
    local before
    before=$(signs)
    sleep 1.2
    (($(signs) > before))
}

# A busy machine may hold up one of the six that are due.
often() {
    local before
    before=$(signs)
    sleep 3
    (($(signs) - before >= 4))
}
redis_back() { tail -n 2 "$WORK/told" | grep -q "Redis answers"; }

start_redis
unset WATCHDOG_PID
export WATCHDOG_USEC=1000000
for address in "$WORK/notify" "@daoserver-$TAG"; do
    manager "$address"
    NOTIFY_SOCKET=$address start_daemon rts
    check "READY at $address" eventually 5 told "READY=1"
    check "and then the control socket answers, registered" grep -q '^READY=1 .*"registered":true' "$WORK/told"
    check "once" same 1 "$(grep -c READY "$WORK/told")"
    check "signs of life come" eventually 5 more_signs
    check "twice within the watchdog's time" often
    check "and a line on how it does" eventually 5 told "STATUS=master; Redis answers; publishers: 0; mirrors: 0"
    kill -STOP "${DAEMON[rts]}"
    sleep 0.2
    check "a daemon that does nothing gives none" not more_signs
    kill -CONT "${DAEMON[rts]}"
    check "one that goes on does" eventually 5 more_signs
    kill -STOP "$REDIS_PID"
    check "Redis away is no reason to be restarted" eventually 15 told "STATUS=master; Redis is away"
    check "signs of life go on" more_signs
    kill -CONT "$REDIS_PID"
    check "Redis is back" eventually 10 redis_back
    check "SIGTERM ends it in order" kill_daemon rts TERM
    check "and it says so" told "STOPPING=1"
    check "nobody complained" not grep -q "no sign of life" "$WORK/rts.log"
done

manager "$WORK/notify-2"
export NOTIFY_SOCKET=$WORK/notify-2
WATCHDOG_PID=1 start_daemon rts
check "a watchdog of another process is not ours" eventually 5 told "STATUS="
check "so there are no signs of life" same 0 "$(signs)"
python3 -ISc 'import socket, sys
daemon = socket.socket(socket.AF_UNIX)
daemon.connect(sys.argv[1])
daemon.sendall(b"{\"id\": 1, \"op\": \"stop\"}\n")
daemon.makefile().read()' "$WORK/rts/.daoserver-rts.sock"
check "a stop over the control socket is told as well" eventually 5 told "STOPPING=1"

manager "$WORK/notify-3"
export NOTIFY_SOCKET=$WORK/notify-3
printf '{"id": 1, "op": "start"}\n' | at rts --stdio >/dev/null 2>"$WORK/stdio.log"
check "a daemon behind --stdio is no service" same listening "$(<"$WORK/told")"
without_redis() { REDIS_PORT=1 at rts; }
check "one that cannot start tells why" not without_redis
check "in its status" eventually 5 told "STATUS=Cannot connect to Redis at"
check "and is not ready" not told READY

if command -v systemd-analyze >/dev/null; then
    sed -e "s,^ExecStart=[^ ]*,ExecStart=$DAOSERVER," -e 's,^User=.*,User=root,' "$REPOSITORY/scripts/daoserver.service" \
        >"$WORK/daoserver.service"
    check "systemd takes scripts/daoserver.service" systemd-analyze verify "$WORK/daoserver.service"
    check "without a word" same "" "$(systemd-analyze verify "$WORK/daoserver.service" 2>&1)"
fi
finish
