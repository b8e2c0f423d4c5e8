#!/usr/bin/env bash
# Train on the machines of a hostfile: bash scripts/train_hostfile.sh HOSTFILE RECIPE [options of train]
#
#   bash scripts/train_hostfile.sh hostfiles/two_nodes imp_moe_b --set train.ep_size=8 --output_dir /shared/runs/moe_b
#
# Needed: the same project folder and .venv at the same path on every machine (a shared file system does), an output folder
# that all see, and, from the machine where this is started, ssh without a password and the program pdsh.
#
# Without ssh, start it on every machine itself, with the machine's place in the hostfile, from 0, and the first one's address:
#   NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash scripts/train_hostfile.sh hostfiles/two_nodes imp_moe_b      on the first
#   NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash scripts/train_hostfile.sh hostfiles/two_nodes imp_moe_b      on the second
#
# Variables:
#   INCLUDE, EXCLUDE        which of the hostfile's machines and slots to use: hostfiles/eight_nodes_of_8 explains
#   NODE_RANK, MASTER_ADDR  start without ssh, as above
#   MASTER_PORT             port of the first machine that the others can reach; default 29500
#
# A variable that the other machines need too (NCCL_SOCKET_IFNAME=eth0, OMP_NUM_THREADS=8) goes as NAME=value on a line of
# the file .deepspeed_env in the project's root; those that begin with NCCL, PYTHON, MV2 or UCX go there by themselves.
#
# To stop with a checkpoint and exit code 75, one rank has to get SIGUSR1; all ranks agree. Started without ssh, SIGTERM or
# SIGUSR1 to this script on any machine does that. Started over ssh, no signal goes through: kill -USR1 the process of a
# rank, on its machine (SIGTERM to this script kills all ranks). --resume auto goes on, or starts when there is nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/launch.sh

if [[ $# -lt 2 || $1 == --help || $1 == -h ]]; then
    show_help scripts/train_hostfile.sh
    [[ ${1:-} == --help || ${1:-} == -h ]] && exit
    fail "a hostfile and a recipe are needed"
fi
hostfile=$(from_caller "$1")
shift
# a recipe file is meant from the caller's folder
if [[ -f $CALLER/${1%%:*} ]]; then set -- "$(from_caller "$1")" "${@:2}"; fi
use_environment

# deepspeed trains on this machine alone, with a warning, when it cannot read the hostfile: so it is read here first
python -m imp_ds doctor --hostfile "$hostfile"

launcher=(--hostfile "$hostfile" --master_port "${MASTER_PORT:-29500}")
# rank 0 compares where the ranks are with it, unless only a part of it is meant
if [[ -z ${INCLUDE:-}${EXCLUDE:-} ]]; then set -- "$@" --hostfile "$hostfile"; fi
if [[ -n ${INCLUDE:-} ]]; then launcher+=(--include "$INCLUDE"); fi
if [[ -n ${EXCLUDE:-} ]]; then launcher+=(--exclude "$EXCLUDE"); fi
if [[ -n ${NODE_RANK:-} ]]; then
    [[ -n ${MASTER_ADDR:-} ]] || fail "NODE_RANK needs MASTER_ADDR
  fix:     MASTER_ADDR=address of the first machine of the hostfile, the same on all"
    launcher+=(--no_ssh --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR")
elif [[ -n ${MASTER_ADDR:-} ]]; then
    launcher+=(--master_addr "$MASTER_ADDR")
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# over ssh, shells of the other machines read the options: whatever they could change goes as one word of letters
if [[ $* == *[!A-Za-z0-9_./=:,@%+\ -]* || $# -ne $(wc -w <<<"$*") ]]; then set -- "$(python -m imp_ds quote -- "$@")"; fi

launch deepspeed --quiet "${launcher[@]}" --module imp_ds train "$@"
