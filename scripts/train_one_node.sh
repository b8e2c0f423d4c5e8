#!/usr/bin/env bash
# Train on this machine, on all of its GPUs: bash scripts/train_one_node.sh RECIPE [options of train]
#
#   bash scripts/train_one_node.sh imp_moe_b --set train.ep_size=8 --output_dir runs/moe_b
#   RANKS=4 bash scripts/train_one_node.sh imp_b           four ranks instead of one for each GPU
#   RANKS=2 bash scripts/train_one_node.sh digits          two CPU ranks, on a machine without a GPU
#
# Variables:
#   RANKS        ranks to start; default: one for each GPU, or one on a machine without
#   MASTER_PORT  port through which the ranks find each other; default: a free one
#
# What the run will cost is shown before by `python -m imp_ds plan RECIPE --gpus N`. Relative paths are meant from the
# project's root.
#
# SIGTERM or SIGUSR1 to this script, or Ctrl-C: a checkpoint after the current step, then the end, with exit code 75 (for
# Ctrl-C 1, and 30 seconds are all it may take). The same again ends at once. An interrupted run goes on with the same
# command and --resume auto, which may stand there from the first start on: with nothing to go on from it starts.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/launch.sh

if [[ $# -eq 0 || $1 == --help || $1 == -h ]]; then
    show_help scripts/train_one_node.sh
    exit
fi
use_environment
# a recipe file is meant from the caller's folder
if [[ -f $CALLER/${1%%:*} ]]; then set -- "$(from_caller "$1")" "${@:2}"; fi

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
ranks=${RANKS:-$((gpus > 0 ? gpus : 1))}
if [[ $gpus -eq 0 ]]; then
    export DS_ACCELERATOR=cpu
elif [[ $ranks -gt $gpus ]]; then
    fail "more ranks than GPUs
  got:     RANKS=$ranks
  allowed: 1 to $gpus
  fix:     RANKS=$gpus, or CUDA_VISIBLE_DEVICES= for ranks on the CPU"
fi
# torch starts a thread for each core in every rank otherwise, and the ranks stand in each other's way
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

launch deepspeed --quiet --num_gpus "$ranks" --master_port "${MASTER_PORT:-$(free_port)}" --module imp_ds train "$@"
