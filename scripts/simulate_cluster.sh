#!/usr/bin/env bash
# Two machines in network namespaces of this one, with faults: bash scripts/simulate_cluster.sh [SCENE ...]
#
#   bash scripts/simulate_cluster.sh                 all scenes, in 3 minutes on two cores
#   bash scripts/simulate_cluster.sh wire            the network alone, in seconds
#   bash scripts/simulate_cluster.sh clean kill      some scenes; those with a fault are compared with `clean`
#
# Scenes:
#   wire    the machines see each other, a pulled cable parts them, plugged in again they meet
#   clean   an undisturbed run through the deepspeed launcher and a hostfile; its losses are what the others must find
#   blip    the cable is out for BLIP seconds in mid-run: the run goes on, to the same losses
#   cut     the cable stays out: within the limit both machines stop and log why; resumed, the run has the same losses
#   kill    all of the second machine is killed with -9: the first stops and names who is gone; resumed, the same losses
#   kill0   the same with the first machine, through which the ranks find each other
# The same losses means: each bit of each step's loss. One line for each scene; exit code 1 if one is bad.
#
# Needed: root, the programs ip (iproute2), unshare and hostname, and a kernel that permits network namespaces. No other
# network is touched; namespaces and processes are gone at the end, also when it is interrupted.
#
# Variables:
#   BLIP      seconds; default 5
#   LIMIT     train.hang_timeout_s, seconds; default 20
#   KEEP      a folder for logs and runs that stays; default: a temporary one, kept only after a bad outcome
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source scripts/simulated_network.sh

SCENES=(wire clean blip cut kill kill0)
STEPS=40
SAVE_EVERY=8
FAULT_AT=20  # steps recorded before a fault; the last checkpoint is older, so that something is lost
GRACE=45     # seconds beyond the limit within which a launcher must have ended; it gives its ranks 30
PATIENCE=300 # seconds within which a run must have come to FAULT_AT, or to its end
BLIP=${BLIP:-5}
LIMIT=${LIMIT:-20}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    show_help scripts/simulate_cluster.sh
    exit
fi
for scene in "$@"; do
    [[ " ${SCENES[*]} " == *" $scene "* ]] || fail "unknown scene
  got:     $scene
  allowed: ${SCENES[*]}"
done
scenes=("$@")
if [[ $# -eq 0 ]]; then
    scenes=("${SCENES[@]}")
elif [[ " $* " =~ \ (blip|cut|kill|kill0)\  && " $* " != *" clean "* ]]; then
    scenes+=(clean) # what they are compared with
fi

permitted() {
    local program problem
    [[ $(id -u) == 0 ]] || fail "network namespaces need root
  got:     user $(id -un)
  fix:     run this as root, in a container if you like"
    for program in ip unshare hostname; do
        command -v "$program" >/dev/null || fail "a program is missing
  got:     no $program on PATH
  fix:     install iproute2 (ip), util-linux (unshare) and hostname"
    done
    problem=$({ ip netns add "$NETWORK-switch" && ip -n "$NETWORK-switch" link add eth0 type veth peer name port &&
        ip netns exec "$NETWORK-switch" unshare --uts true && ip netns delete "$NETWORK-switch"; } 2>&1) ||
        fail "network namespaces are not permitted here
  got:     ${problem##*$'\n'}
  fix:     take a machine of your own, or a container with the capabilities SYS_ADMIN and NET_ADMIN"
}

# outcome ok|bad SCENE TEXT
outcome() {
    printf '%-4s %-6s %s\n' "$1" "$2" "$3"
    [[ $1 == ok ]] || bad=1
}

# --- a run on both machines; each is one rank, and they share the experts

# start RUN [options of train]: both launchers, in the background; their output goes to RUN.node0.log and RUN.node1.log
start() {
    local run=$1 node options
    shift
    options=(--output_dir "$folder/$run" --set "data.root=$folder/corpus" --set data.workers=0 --set 'evaluations=[]'
        --set train.ep_size=2 --set "train.steps=$STEPS" --set "train.save_every=$SAVE_EVERY"
        --set "train.hang_timeout_s=$LIMIT" "$@")
    launchers=() began=$SECONDS port=$((port + 1))
    for node in 0 1; do
        on_node "$node" env NODE_RANK="$node" MASTER_ADDR=10.0.0.1 MASTER_PORT="$port" GLOO_SOCKET_IFNAME=eth0 \
            DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= DS_ENV_FILE=none OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 \
            bash scripts/train_hostfile.sh "$folder/hostfile" digits_debug "${options[@]}" \
            >>"$folder/$run.node$node.log" 2>&1 &
        launchers+=($!)
    done
}

steps_of() {
    grep -c '"kind": "train"' "$folder/$1/metrics.jsonl" 2>/dev/null || true
}

# come_far RUN: wait for the step before which nothing is disturbed
come_far() {
    local deadline=$((SECONDS + PATIENCE)) steps=0
    while [[ $steps -lt $FAULT_AT ]]; do
        if [[ $SECONDS -gt $deadline ]] || ! kill -0 "${launchers[@]}" 2>/dev/null; then
            outcome bad "$1" "the run did not come as far as the fault"
            return 1
        fi
        sleep 0.05
        steps=$(steps_of "$1")
    done
}

# ended NODE SECONDS: wait for a launcher and leave its exit code in $code; 1 when it has not ended by then
ended() {
    local deadline=$((SECONDS + $2))
    while kill -0 "${launchers[$1]}" 2>/dev/null; do
        [[ $SECONDS -le $deadline ]] || return 1
        sleep 0.2
    done
    code=0
    wait "${launchers[$1]}" || code=$?
}

both_end_well() {
    ended 0 "$PATIENCE" && [[ $code == 0 ]] && ended 1 "$PATIENCE" && [[ $code == 0 ]]
}

# compared RUN: whether its losses are those of the undisturbed run; $reported is how many there are, or where they part
compared() {
    reported=$(python scripts/same_losses.py "$folder/clean/metrics.jsonl" "$folder/$1/metrics.jsonl" "$STEPS" 2>&1)
}

# stopped RUN NODE SECONDS: the launcher on a machine ends in time, not well, and names the rank that is to blame
stopped() {
    local since=$SECONDS message
    if ! ended "$2" "$3"; then
        outcome bad "$1" "node$2 still runs after $3 s"
        return 1
    elif [[ $code == 0 ]]; then
        outcome bad "$1" "node$2 ended as if nothing had happened"
        return 1
    elif ! message=$(grep -m 1 '^error: .*rank [01]' "$folder/$1.node$2.log"); then
        outcome bad "$1" "node$2 stopped with exit code $code and did not name who is to blame"
        return 1
    fi
    echo "     $1: node$2 ended after $((SECONDS - since)) s, exit code $code: $message"
}

# resumed RUN FAULT: the same command with --resume comes to the end, with the same losses
resumed() {
    local from
    start "$1" --resume auto
    if ! both_end_well; then
        outcome bad "$1" "$2; it could not be resumed"
        return
    fi
    from=$(grep -o 'resuming from .*' "$folder/$1.node0.log" | grep -o 'step_[0-9]*' | tail -n 1 || true)
    if [[ -z $from ]]; then
        outcome bad "$1" "$2; it began again from the start"
    elif compared "$1"; then
        outcome ok "$1" "$2; resumed from $from: $reported"
    else
        outcome bad "$1" "$2; resumed from $from: $reported"
    fi
}

# --- the scenes

scene_wire() {
    local connect="import socket; socket.create_connection(('10.0.0.2', 5000), timeout=1)"
    on_node 1 python -c "import socket, time; s = socket.create_server(('10.0.0.2', 5000), backlog=99); time.sleep(60)" 2>/dev/null &
    for _ in {1..100}; do
        if on_node 0 python -c "$connect" 2>/dev/null; then break; fi
        sleep 0.1
    done
    if ! on_node 0 python -c "$connect" 2>/dev/null; then
        outcome bad wire "the machines do not see each other"
    elif unplug 1 && on_node 0 python -c "$connect" 2>/dev/null; then
        outcome bad wire "a pulled cable parts nobody"
    elif plug 1 && on_node 0 python -c "$connect"; then
        outcome ok wire "the machines see each other, a pulled cable parts them, plugged in again they meet"
    else
        outcome bad wire "the machines do not meet again"
    fi
    power_off 1
}

scene_clean() {
    start clean
    if both_end_well && compared clean; then
        outcome ok clean "$STEPS steps on two machines in $((SECONDS - began)) s"
    else
        outcome bad clean "the undisturbed run did not end well"
    fi
}

scene_blip() {
    local before after
    start blip
    come_far blip || return 0
    unplug 1
    sleep 1 # what was on its way is recorded
    before=$(steps_of blip)
    sleep $((BLIP - 1))
    after=$(steps_of blip)
    plug 1
    if ! both_end_well; then
        outcome bad blip "the run did not survive a cable that was out for $BLIP s"
    elif [[ $before != "$after" || $after -ge $STEPS ]]; then
        outcome bad blip "the run did not wait while the cable was out: steps $before and $after"
    elif compared blip; then
        outcome ok blip "the cable was out for $BLIP s after step $after: the run waited and went on: $reported"
    else
        outcome bad blip "$reported"
    fi
}

scene_cut() {
    start cut
    come_far cut || return 0
    unplug 1
    # both have the same time, from now
    stopped cut 0 $((LIMIT + GRACE)) && stopped cut 1 "$GRACE" || return 0
    plug 1
    resumed cut "the cable stayed out: both machines stopped"
}

# NODE dies, the other stops
kill_node() {
    local run=$1 victim=$2
    start "$run"
    come_far "$run" || return 0
    power_off "$victim"
    stopped "$run" $((1 - victim)) "$GRACE" || return 0
    ended "$victim" 5
    resumed "$run" "node$victim killed: the other stopped"
}

scene_kill() {
    kill_node kill 1
}

scene_kill0() {
    kill_node kill0 0
}

# --- all of it

leave() {
    local code=$?
    trap - EXIT
    remove_network
    wait 2>/dev/null || true # for the shells of launchers that were killed
    if [[ -n ${KEEP:-} || ($bad == 1 && -n $folder) ]]; then
        echo "logs and runs: $folder"
    elif [[ -n $folder ]]; then
        rm -rf "$folder"
    fi
    exit "$code"
}

prepare() {
    if [[ -n ${KEEP:-} ]]; then
        folder=$(from_caller "$KEEP")
        mkdir -p "$folder"
        [[ -z $(ls -A "$folder") ]] || fail "KEEP is not empty
  got:     $folder
  fix:     a new folder"
    else
        folder=$(mktemp -d)
    fi
    printf '%s\n' 'node0 slots=1' 'node1 slots=1' >"$folder/hostfile"
}

use_environment
bad=0 folder="" port=29500 launchers=()
trap leave EXIT
trap 'exit 130' INT TERM
permitted
make_network
prepare
if [[ ${scenes[*]} != wire ]]; then
    python -m imp_ds corpus digits "$folder/corpus" --scale 0.03 >"$folder/corpus.log"
fi
for scene in "${SCENES[@]}"; do
    if [[ " ${scenes[*]} " == *" $scene "* ]]; then
        "scene_$scene"
        for node in 0 1; do # a scene that went wrong leaves nothing to the next one
            plug "$node"
            power_off "$node"
        done
    fi
done
exit "$bad"
