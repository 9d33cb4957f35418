#!/bin/sh
# Makes build/venv from tests/requirements.txt when it is not there, and runs tests/e2e, or the files that are named,
# against build/inferd or $INFERD_BINARY: those that take minutes (E2E_MARK=slow) or the others.
set -eu
venv=build/venv
if ! cmp -s tests/requirements.txt $venv/requirements.txt; then
    python3 -m venv $venv
    $venv/bin/pip install -q -r tests/requirements.txt
    cp tests/requirements.txt $venv/requirements.txt
fi
[ $# -gt 0 ] || set -- tests/e2e
exec $venv/bin/python -m pytest -q -p no:cacheprovider -m "${E2E_MARK:-not slow}" "$@"
