#!/usr/bin/env bash
# Run the tests: bash scripts/test.sh [options of pytest]
#
# Makes .venv with Python 3.11 or newer if there is none, installs requirements.txt and requirements-dev.txt into it, and
# runs pytest there, two files of tests at a time. Needs no root. The exit code is pytest's.
#
#   bash scripts/test.sh                      all tests
#   bash scripts/test.sh tests/moe -x         one folder, until the first failure
#   bash scripts/test.sh -n 0 -s              one file at a time, and what tests print
#   PYTHON=/opt/python3.12 bash scripts/test.sh    make .venv with that Python
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    show_help "scripts/test.sh"
    exit
fi
install dev
# several ranks share the cores in many tests: one thread each
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# a file's tests share what it made, so they stay together; a second file runs while one waits, for ranks or for an import;
# a test that hangs is not tried again
exec python -m pytest -n 2 --dist loadfile --max-worker-restart 0 "$@"
