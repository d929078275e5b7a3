#!/bin/bash
# `bench --to` between machines with addresses of their own. They share this machine's clock, so what is said of the two
# clocks can be checked: it must hold within its error, also where one way takes far longer than the other.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_python

machines alpha beta
start_daemon alpha
start_daemon beta
known() { at alpha list --json | grep -q '"beta"'; }
eventually 5 known
bench() { at alpha bench --to beta --quick --sizes 1k --json 2>"$WORK/bench.log" >"$WORK/bench.json"; }
found() { json "$1" <"$WORK/bench.json"; }
one_clock() { same true "$(found 'abs(d["clock"]["offset_us"]) <= d["clock"]["error_us"] + 0.01')"; }

check "bench --to" bench
echo "      $(found '[d["clock"], {way: d["sizes"][0][way]["p50_us"] for way in ("round_trip", "out", "at_owner", "back")}]')"
check "... frames come back" same true "$(found 'd["sizes"][0]["frames_returned"] > 0')"
check "... the clocks are one, within the error" one_clock

# What beta sends takes 4 ms more than what it gets.
if ip netns exec "dao$$-beta" tc qdisc add dev frames root netem delay 4ms 2>"$WORK/tc.log"; then
    check "bench --to, with one way that is slower" bench
    echo "      $(found '[d["clock"], {way: d["sizes"][0][way]["p50_us"] for way in ("round_trip", "out", "at_owner", "back")}]')"
    check "... round trips have it" same true "$(found 'd["sizes"][0]["round_trip"]["p50_us"] > 4000')"
    check "... nobody can know which way it was: the error says so" same true "$(found 'd["clock"]["error_us"] > 2000')"
    check "... the clocks are one, within the error" one_clock
    check "... and no queue has built up" same true "$(found 'd["sizes"][0]["paced_hz"] < 250')"
else
    echo "      a slower way is left out: $(cat "$WORK/tc.log")"
fi
nothing_there() { same "" "$(find "$WORK/beta" -name '*.im.shm')"; }
check "nothing is left here" same "" "$(find "$WORK/alpha" -name '*.im.shm')"
check "nor there" eventually 8 nothing_there
finish
