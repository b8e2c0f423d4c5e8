#!/usr/bin/env bash
# From nothing to a Uni-MoE model in three stages, on two CPU cores: bash scripts/talk.sh [options of train]
#
# Makes .venv if there is none, and the quickstart's model (runs/digits/model) if it is not there: it is what reads images, videos
# and speech. Makes the corpus of conversations, trains all stages of the recipe `talk` under the deepspeed launcher, each on two
# CPU ranks, and asks the last stage's model. Everything lies in runs/talk/ then, a folder for each stage.
#
#   bash scripts/talk.sh --resume auto                go on where a run was interrupted, inside any stage
#   bash scripts/talk.sh --set moe.train.steps=50     a shorter run of one stage
#   bash scripts/talk.sh --stage moe                  that stage alone; those before it must be finished
#
# All options go to `python -m imp_ds train talk` (see its --help). What an earlier call left in runs/talk is moved aside, unless
# --resume or --stage is among them. A Python can be named by PYTHON=/path/to/python3.11.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

case "${1-}" in --help | -h) show_help scripts/talk.sh && exit ;; esac
install
[[ -e runs/digits/model ]] || bash scripts/quickstart.sh
start=$SECONDS
export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONWARNINGS='ignore:`torch.distributed.:FutureWarning'

case " $* " in
    *" --resume"* | *" --stage"*) ;;
    *) [[ ! -e runs/talk ]] || move_aside runs/talk ;;
esac
python -m imp_ds corpus talk data/talk
deepspeed --quiet --num_gpus 2 --master_port "$(free_port)" --module imp_ds train talk "$@"
if [[ -e runs/talk/moe/model ]]; then
    images=(data/talk/images/test/*.png)
    python -m imp_ds chat runs/talk/moe/model --image "${images[0]}" "which digit is this?"
fi

seconds=$((SECONDS - start))
echo "Done in $((seconds / 60)) min $((seconds % 60)) s. Models: runs/talk/STAGE/model; scores: runs/talk/STAGE/results.json"
