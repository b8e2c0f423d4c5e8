# Start the deepspeed launcher so that a run can be asked to stop; sourced, not run.
#   launch COMMAND ...   run it, and exit with its exit code
#
# What a launcher does with a signal (deepspeed 0.19.8, by its source; torchrun of torch 2.13, as seen):
#   deepspeed (the command)   ends at SIGTERM and SIGUSR1, and leaves the ranks behind, which go on
#   its launch.py             SIGTERM: SIGTERM to the ranks and their loaders, SIGKILL after 30 s, exit code 1; SIGUSR1: ends,
#                             and leaves the ranks behind. A rank that exits with 75 makes it, and deepspeed, exit with 75
#   torchrun                  SIGTERM: SIGTERM to the ranks, SIGKILL after 30 s, exit code 1, whatever the ranks' code
# A rank that gets SIGTERM or SIGUSR1 saves a checkpoint after its step, and all ranks exit with 75. So SIGTERM and SIGUSR1 to
# the script go to the ranks, past the launcher, as SIGUSR1; no time limit is set then, and the exit code comes through.

# SIGUSR1 to the ranks of this machine, the children of launch.py. Before there are any, or where they run elsewhere (pdsh),
# the launcher itself is ended.
ask_ranks() {
    python - "$1" <<'END'
import signal, sys
import psutil

ranks = []
for process in psutil.Process(int(sys.argv[1])).children(recursive=True):
    try:
        if "deepspeed.launcher.launch" in process.cmdline():
            ranks += process.children()
    except psutil.NoSuchProcess:
        pass
for rank in ranks:
    rank.send_signal(signal.SIGUSR1)
sys.exit(not ranks)
END
}

launch() {
    "$@" &
    local launcher=$! code=0
    # a second signal is passed on too: it ends the ranks at once
    trap 'ask_ranks '"$launcher"' || kill -TERM '"$launcher"' 2>/dev/null || true' TERM USR1
    # Ctrl-C reaches launch.py from the terminal, which sends the ranks SIGTERM; wait for what they do
    trap : INT
    # a trapped signal ends `wait`, and what it returns then is no exit code
    while kill -0 "$launcher" 2>/dev/null; do
        wait "$launcher" || true
    done
    wait "$launcher" || code=$?
    exit "$code"
}
