#!/usr/bin/env bash
# Walk docs/first_run.md with the wheel alone: bash scripts/wheel_run.sh [--borrow]
#
# Builds the wheel, installs it with all that it needs into a new virtual environment in a temporary folder, and walks the page
# there, outside of this clone. Several minutes for the packages, then about 2. With --borrow the packages of .venv are used
# instead of installed ones; imp_ds itself always comes from the wheel.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

case ${1:-} in
    "" | --borrow) ;;
    --help | -h) show_help scripts/wheel_run.sh && exit ;;
    *) fail "unknown option
  got:     $1
  allowed: --borrow, --help" ;;
esac
use_environment
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# a copy, since building leaves files in the folder it builds from
git archive HEAD | tar -x -C "$folder" --one-top-level=source
python -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$folder/source"
python -m venv "$folder/venv"
if [[ ${1:-} == --borrow ]]; then
    python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$folder/packages"
    cp "$folder/packages" "$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
    # the launcher, run by the new environment's Python
    printf '#!%s\nfrom deepspeed.launcher.runner import main\nmain()\n' "$folder/venv/bin/python" >"$folder/venv/bin/deepspeed"
    chmod +x "$folder/venv/bin/deepspeed"
    "$folder/venv/bin/python" -m pip install --quiet --no-deps "$folder"/imp_ds-*.whl
else
    "$folder/venv/bin/python" -m pip install --quiet "$folder"/imp_ds-*.whl
fi
cd "$folder"
unset PYTHONPATH
PATH="$folder/venv/bin:$PATH" "$folder/venv/bin/python" "$ROOT/scripts/first_run.py"
