#!/usr/bin/env bash
#SBATCH --job-name=imp_ds
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
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
# Two minutes before the time limit (--signal) the job puts itself back into the queue; a job that Slurm restarts, for that
# or because a node failed, goes on with --resume from its newest whole checkpoint. The steps since that checkpoint are
# lost: choose train.save_every so that they are few.
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

resume=()
if [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]]; then
    resume=(--resume)
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# The ranks find each other by Slurm's own variables. All GPUs of a node stay visible to each of its tasks (--gpu-bind=none):
# a rank takes the one of its number. --kill-on-bad-exit: when one rank dies the others would wait for it.
srun --kill-on-bad-exit=1 --gpu-bind=none python -u -m imp_ds train "$@" ${resume[@]+"${resume[@]}"} &
ranks=$!

requeue() {
    echo "the time is nearly over: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
}
# a trapped signal ends `wait`; the job goes on until Slurm, which has requeued it, ends it
trap requeue USR1
while true; do
    code=0
    wait "$ranks" || code=$?
    kill -0 "$ranks" 2>/dev/null || exit "$code"
done
