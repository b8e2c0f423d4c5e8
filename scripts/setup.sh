# What the scripts share; sourced, not run. Sets ROOT and makes it the current folder.
#   install [dev]      make .venv and install the pinned packages, unless that is done already
#   use_environment    the python, deepspeed, ... of .venv, or else those that are on PATH
#   show_help FILE     print the comment at the head of a script
#   free_port          a TCP port that nothing listens on now
#   move_aside NAME    free a name that an earlier run holds

# where the user stands: relative paths among the options are meant from there
CALLER=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

fail() {
    echo "error: $1" >&2
    exit 2
}

show_help() {
    awk 'NR > 1 { if (!/^#/) exit; if (!/^#SBATCH/) { sub(/^# ?/, ""); print } }' "$1"
}

# A Python of the right age: $PYTHON if it is set, or the first on PATH. Some names on PATH only say what to install,
# so each is asked for its version.
find_python() {
    local name names=(python3.11 python3.12 python3.13 python3 python)
    if [[ -n ${PYTHON:-} ]]; then
        names=("$PYTHON")
    fi
    for name in "${names[@]}"; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer was found
  got:     $( ("${PYTHON:-python3}" --version 2>&1 || true) | head -n 1)
  allowed: Python 3.11 or newer
  fix:     install one (it need not be the system's), then PYTHON=/path/to/python3.11 bash $0"
}

make_venv() {
    local python
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    rm -f .venv/.installed-*
    "$python" -m venv .venv || fail "the virtual environment could not be made
  got:     $python -m venv .venv failed, see above
  fix:     install the package python3-venv (Debian, Ubuntu); or PYTHON=/path/to/another/python bash $0"
}

# Install one requirements file, unless the stamp of its last complete installation names its present content.
install_file() {
    local file=$1 stamp=.venv/.installed-$1 now
    now=$(.venv/bin/python -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$file")
    if [[ -f $stamp && $(<"$stamp") == "$now" ]]; then
        return
    fi
    echo "installing $file into .venv (several minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$file" ||
        fail "the packages could not be installed
  got:     pip install -r $file failed, see above
  fix:     check the network and the disk, and run this again: what is installed is kept"
    echo "$now" >"$stamp"
}

install() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "the Python of .venv is too old
  got:     $(.venv/bin/python --version)
  allowed: Python 3.11 or newer
  fix:     move the folder .venv away and run this again"
    install_file requirements.txt
    if [[ ${1:-} == dev ]]; then
        install_file requirements-dev.txt
    fi
    use_environment
}

use_environment() {
    if [[ -x .venv/bin/python ]]; then
        export PATH="$ROOT/.venv/bin:$PATH"
    fi
    command -v deepspeed >/dev/null || fail "deepspeed is not installed
  got:     no .venv in $ROOT, and no deepspeed on PATH
  fix:     bash scripts/quickstart.sh makes .venv; or activate the environment that has requirements.txt"
}

free_port() {
    python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# A path that the user gave, as seen from ROOT.
from_caller() {
    if [[ $1 == /* || $CALLER == "$ROOT" ]]; then
        echo "$1"
    else
        echo "$CALLER/$1"
    fi
}

move_aside() {
    local aside
    aside="$1.previous-$(date +%Y%m%d-%H%M%S)"
    mv "$1" "$aside"
    echo "$1 was there: moved to $aside"
}
