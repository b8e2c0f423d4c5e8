#!/usr/bin/env bash
# From nothing to a trained model, on two CPU cores: bash scripts/quickstart.sh [options of train]
#
# Makes .venv if there is none and installs the pinned packages (no root needed), makes the digits corpus, trains the
# recipe `digits` under the deepspeed launcher on two CPU ranks that share the experts, exports the model, loads it again
# in a fresh process and prints its zero-shot results. Everything lies in runs/digits/ then.
#
#   bash scripts/quickstart.sh --set train.steps=50        a shorter run
#   bash scripts/quickstart.sh --output_dir runs/mine      another folder for the run
#   bash scripts/quickstart.sh --set data.root=DIR         another place for the corpus, or a corpus that is there
#   bash scripts/quickstart.sh --resume auto               go on with a run that was interrupted
#
# All options go to `python -m imp_ds train digits` (see its --help). A run that is found in runs/digits is moved aside,
# not deleted. It uses no GPU: scripts/train_one_node.sh does. A Python can be named by PYTHON=/path/to/python3.11.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

run=runs/digits corpus=data/digits resume=no
sets=() options=()

# Read the options that later steps need too; all of them go on to train.
read_options() {
    while [[ $# -gt 0 ]]; do
        local name=${1%%=*} value
        case $name in
            --help | -h) show_help scripts/quickstart.sh && exit ;;
            --set | --output_dir | --deepspeed_config | --resume) ;;
            *) fail "unknown option
  got:     $1
  allowed: --set PATH=VALUE, --output_dir DIR, --deepspeed_config FILE, --resume auto, --help" ;;
        esac
        if [[ $1 == *=* ]]; then
            value=${1#*=}
        else
            [[ $# -ge 2 ]] || fail "$name needs a value"
            value=$2
            shift
        fi
        shift
        case $name in
            --set)
                if [[ $value == data.root=* ]]; then
                    corpus=$(from_caller "${value#*=}")
                    value="data.root=$corpus"
                fi
                sets+=(--set "$value")
                ;;
            --output_dir) run=$(from_caller "$value") ;;
            --resume) resume=yes options+=(--resume "$value") ;;
            --deepspeed_config) options+=(--deepspeed_config "$(from_caller "$value")") ;;
        esac
    done
}

step() {
    printf '\n== %s\n' "$1"
}

prepare() {
    # a mistyped option is refused before anything is moved or made
    python -m imp_ds plan digits --gpus 2 "${sets[@]}" >/dev/null
    if [[ $resume == no && $run == runs/digits && -e $run ]]; then
        move_aside "$run"
    fi
    if [[ $resume == yes && -e $run/model ]]; then
        move_aside "$run/model"
    fi
    # a corpus of the user's own is taken as it is; train reports when it is not one
    step "1/4 the corpus"
    if [[ $corpus == data/digits || ! -e $corpus ]]; then
        python -m imp_ds corpus digits "$corpus"
    else
        echo "$corpus: there already, taken as it is"
    fi
}

read_options "$@"
install
start=$SECONDS
# two ranks on the cores of a laptop: one thread each, unless the user knows better; GPUs are left alone
export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# DeepSpeed calls by an old name what torch has renamed: one warning for each rank, of which the reader can do nothing
export PYTHONWARNINGS='ignore:`torch.distributed.:FutureWarning'
sets=(--set train.ep_size=2 ${sets[@]+"${sets[@]}"})

prepare
step "2/4 training on two ranks"
deepspeed --quiet --num_gpus 2 --master_port "$(free_port)" --module imp_ds train digits \
    "${sets[@]}" ${options[@]+"${options[@]}"} --output_dir "$run"
step "3/4 exporting the model"
python -m imp_ds export "$run" "$run/model"
step "4/4 loading it in a fresh process, and evaluating it on the test split"
python -m imp_ds eval "$run/model" --split test

seconds=$((SECONDS - start))
cat <<END

Done in $((seconds / 60)) min $((seconds % 60)) s.
  results          $run/results.json
  their picture    $run/results.png
  model            $run/model      (AutoModel.from_pretrained("$run/model") after import imp_ds)
  TensorBoard      $run/tensorboard
                   .venv/bin/tensorboard --logdir $run/tensorboard
END
