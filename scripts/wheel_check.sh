#!/usr/bin/env bash
# Check that the wheel alone trains: build it, install it into a new environment outside of any clone, and there copy a recipe,
# train it on two ranks under the deepspeed launcher at ZeRO 3, export it, score it by another recipe and predict with it.
#
#     bash scripts/wheel_check.sh [FOLDER]        # FOLDER: a new one to work in and keep; default: one that is removed
#
# Took 7 min 16 s on two busy cores without a GPU, half of it the installation of what the wheel requires, and 2 GB of room. Needs no GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    show_help "$ROOT/scripts/wheel_check.sh"
    exit
fi
if (($#)); then
    folder=$(from_caller "$1")
    mkdir "$folder"
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
folder=$(cd "$folder" && pwd)

step() { echo "== $* ($SECONDS s)"; }

step "building the wheel"
# from a copy: a build leaves folders beside what it is built from
mkdir "$folder/source"
cp -r "$ROOT"/{imp_ds,ds_configs,setup.py,pyproject.toml,requirements.txt} "$folder/source"
python=$(find_python)
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps -w "$folder" "$folder/source"
rm -rf "$folder/source"

step "installing it into a new environment"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$folder"/imp_ds-*.whl

cd "$folder"
export PATH="$folder/venv/bin:$PATH" OMP_NUM_THREADS=1
unset PYTHONPATH VIRTUAL_ENV
found=$(python -c 'import imp_ds; print(imp_ds.__file__)')
[[ $found == "$folder"/venv/* ]] || fail "another imp_ds is found than the installed one: $found"

step "a corpus and a recipe of one's own"
imp_ds corpus digits digits --scale 0.05
imp_ds recipes copy digits_debug mine.py --set data.root=digits --set name=mine
imp_ds data check mine.py --samples 8 >check.txt

step "training on two ranks"
deepspeed --num_gpus 2 --master_port "$(free_port)" --module imp_ds train mine.py --set train.steps=6 \
    --deepspeed_config gpu_zero3.json
step "going on, at another stage"
deepspeed --num_gpus 2 --master_port "$(free_port)" --module imp_ds train mine.py --set train.steps=6 --resume auto

step "exporting, scoring and predicting"
imp_ds export runs/mine model
imp_ds eval model --recipe mine.py --split validation --output scores.json
imp_ds predict model digits/images/test --task image_digit --output predicted.jsonl
[[ $(wc -l <predicted.jsonl) -ge 20 && -s scores.json ]] || fail "scores or predictions are missing in $folder"
step "the wheel trains"
