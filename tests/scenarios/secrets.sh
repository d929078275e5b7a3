# For scenarios with a password: it is made, and looked for where it must not be. To be sourced after lib.sh.
# shellcheck shell=bash

# new_secret: into $WORK/secret, which only we may read. Nobody else has it in a command line: it is not typed there.
new_secret() { (umask 077 && echo "hush-$RANDOM$RANDOM-$$" >"$WORK/secret"); }

# hidden HOSTS...: the secret is in no log, in no process's command line, in no status and no answer of these daemons.
hidden() {
    local host
    ! grep -F -f "$WORK/secret" "$WORK"/*.log || return
    ! grep -a -l -F -f "$WORK/secret" /proc/[0-9]*/cmdline 2>/dev/null || return
    for host in "$@"; do
        { at "$host" status && at "$host" status --json && asked "$host" ping && asked "$host" list_machines &&
            asked "$host" nonsense; } >"$WORK/said" || return
        grep -q "\"hostname\":\"$host\"" "$WORK/said" || return
        ! grep -F -f "$WORK/secret" "$WORK/said" || return
    done
}

# asked HOST OP: what its control socket answers, as it is.
asked() {
    python3 -ISc 'import socket, sys
daemon = socket.socket(socket.AF_UNIX)
daemon.settimeout(10)
daemon.connect(sys.argv[1])
daemon.sendall(b"{\"id\": 1, \"op\": \"%s\"}\n" % sys.argv[2].encode())
print(daemon.makefile().readline())' "$WORK/$1/.daoserver-$1.sock" "$2"
}

in_environment() { grep -a -q -F -f "$WORK/secret" "/proc/${DAEMON[$1]}/environ"; }
