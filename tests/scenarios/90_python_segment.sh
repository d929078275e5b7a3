#!/bin/bash
# The segment class of scripts/daoServer.py: the C library's files, every type, waiting, files that change under it.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python.sh
. "$(dirname "$0")/python.sh"
need_numpy

unittests test_segment

finish
