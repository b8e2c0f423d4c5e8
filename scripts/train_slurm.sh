#!/usr/bin/env bash
#SBATCH --job-name=imp_ds
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
# Train under Slurm, one task for each GPU. From the project's root: sbatch scripts/train_slurm.sh RECIPE [options of train]
#
#   sbatch scripts/train_slurm.sh imp_moe_b --set train.ep_size=8 --output_dir /shared/runs/moe_b
#   sbatch --nodes=8 --partition=NAME scripts/train_slurm.sh imp_moe_l --set train.ep_size=8
#
# The lines #SBATCH above are the job's size: options of sbatch go before them, so a job of another size needs no edit.
# Needed: the project folder, .venv and the output folder on a file system that all nodes see.
#
# Two minutes before the time limit (--signal) Slurm sends SIGUSR1 to all ranks; when it wants the machines for another job,
# SIGTERM. The ranks save a checkpoint after the step that they are doing and end with exit code 75, which puts the job back
# into the queue; Slurm does that itself for a node that failed (--requeue). The job always has --resume auto: it goes on
# from its newest complete checkpoint, or starts when there is none. Choose the time of --signal longer than a step, an
# evaluation and a checkpoint take together. Any other exit code ends the job: what failed by itself would fail again.
#
# Without "B:" the signal goes to the tasks of srun and not to this script, which waits for them; srun ends with the highest
# exit code of its tasks. scancel ends this script too, so a cancelled job does not come back.
set -euo pipefail
# Slurm runs a copy of this file from a folder of its own
source "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}/scripts/setup.sh"

if [[ $# -eq 0 || $1 == --help || $1 == -h ]]; then
    show_help scripts/train_slurm.sh
    exit
fi
[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is no Slurm job
  fix:     sbatch scripts/train_slurm.sh $*"
use_environment

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# The ranks find each other by Slurm's own variables. All GPUs of a node stay visible to each of its tasks (--gpu-bind=none):
# a rank takes the one of its number. --kill-on-bad-exit: when one rank dies the others would wait for it.
code=0
srun --kill-on-bad-exit=1 --gpu-bind=none python -u -m imp_ds train --resume auto "$@" || code=$?
if [[ $code -eq 75 ]]; then
    echo "stopped with a checkpoint: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
