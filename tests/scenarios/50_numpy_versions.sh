#!/bin/bash
# What daoserver publishes loads, without a warning, in every NumPy that can be had here.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$(dirname "$0")/peers.sh"
need_peers
# Made by scripts/test: a folder for each, python3.11-numpy1.23.5, with NumPy and nothing else.
numpys=${DAOSERVER_NUMPYS:-$PEERS/../../target/numpy}
versions=()
for folder in "$numpys"/python*-numpy*; do [[ -d $folder/numpy ]] && versions+=("$folder"); done
((${#versions[@]} > 0)) || skip "no other NumPys (scripts/test puts them into target/numpy)"

start_redis
start_daemon alpha
mkdir "$WORK/messages"
for segment in a:140:uint8 b:6x8:int16 c:2x3x5:float32 d:6x8:float64 e:7x3:complex64 f:140:complex128 g:5x5:uint64 h:256x128:uint16; do
    IFS=: read -r name shape dtype <<<"$segment"
    full=$TAG$name:$shape:$dtype
    frames make "$WORK" "$full" --first 9 || fail "frames can be made"
    shm alpha create "$TAG$name" --shape "$shape" --dtype "$dtype" >/dev/null
    shm alpha write "$TAG$name" --raw "$WORK/$TAG$name.raw" --count 1
    mv "$WORK/$TAG$name.raw" "$WORK/messages/$full.raw"
    # A request as a Python client writes it, and a heartbeat, bring a publisher.
    peer "client$name" python_client --owner alpha --segment "$full"
    check "$segment is published" eventually 15 true_of "client$name" 'last("progress")["number"] == 9'
    port=$(said "client$name" 'last("connected")["port"]')
    check "... and recorded" "$PYTHON" "$PEERS/record_messages.py" "$port" "$WORK/messages/$full.pickle"
    end_peer "client$name"
done

# with_python VERSION COMMAND...: by that Python, wherever it is installed.
with_python() {
    local version=$1 python
    shift
    for python in "$version" "$(command -v pyenv >/dev/null && pyenv root)/versions/${version#python}".*/bin/python; do
        if "$python" -c '' 2>/dev/null; then
            "$python" "$@"
            return
        fi
    done
    return 127
}
for folder in "${versions[@]}"; do
    version=$(basename "$folder")
    if ! PYTHONPATH=$folder with_python "${version%%-*}" -c 'import numpy' >/dev/null 2>&1; then
        echo "      $version cannot be run here"
        continue
    fi
    loads() { PYTHONPATH=$folder with_python "${version%%-*}" -W error "$PEERS/load_messages.py" "$WORK/messages"; }
    check "$version" loads
    sed 's/^/      /' "$WORK/check.log" | head -n 1
done

finish
