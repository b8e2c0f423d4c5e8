"""The same four steps under every launcher, by the scripts we ship where there is one: all ranks join, and learn the same.

Under two of them the run would go on for ever, and their launcher is asked to stop: a checkpoint, no rank left behind, and the
exit code that is promised.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.processes import ROOT, environment, free_port, run, run_together

pytestmark = pytest.mark.distributed
STEPS, TIMEOUT = 4, 180
FOR_EVER = ("train.steps=1000000", "data.workers=1")


def training(corpus: Path, out: Path, *options: str) -> list:
    """The arguments of `python -m imp_ds` or of our scripts: four tasks, one step each, without workers or evaluations. The rates
    do not depend on how many steps there are."""
    changes = [f"data.root={corpus}", "evaluations=[]", "model.num_hidden_layers=2", "train.log_every=1"]
    changes += ["optimizer.decay_steps=100", f"train.steps={STEPS}", "data.workers=0", *options]
    return ["digits_debug", *(part for change in changes for part in ("--set", change)), "--output_dir", out]


def on_path(**changes: str) -> dict[str, str]:
    """Variables with which our scripts find the programs of the Python that runs the tests."""
    return environment(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), **changes)


def torchrun(arguments: list, folder: Path) -> list:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    return [([*launcher, "-m", "imp_ds", "train", *arguments], None)]


def deepspeed(arguments: list, folder: Path) -> list:
    return [(["bash", "scripts/train_one_node.sh", *arguments], on_path(RANKS="2"))]


def two_nodes(arguments: list, folder: Path) -> list:
    """Two launchers that know each other by a hostfile, without ssh: two names of this machine are two machines to them."""
    hostfile = folder / "hostfile"
    hostfile.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    port = str(free_port())
    return [
        (
            ["bash", "scripts/train_hostfile.sh", hostfile, *arguments],
            on_path(NODE_RANK=str(node), MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for node in range(2)
    ]


def accelerate(arguments: list, folder: Path) -> list:
    launcher = [
        sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(),
    ]  # fmt: skip
    # a configuration of the user's own in the home folder is not to be read
    return [([*launcher, "--module", "imp_ds", "train", *arguments], environment(HF_HOME=str(folder / "hf")))]


SRUN = """#!/usr/bin/env bash
# what srun does, for two tasks on one machine: run the command twice, with the variables that distinguish the tasks
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_JOB_NODELIST=127.0.0.1 "$@" &
    tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "$code"
"""


def srun(arguments: list, folder: Path) -> list:
    """train_slurm.sh with an imitation of srun; the job's number decides the port, so one is taken whose port is free."""
    fake = folder / "srun"
    fake.write_text(SRUN)
    fake.chmod(0o755)
    env = on_path(SLURM_JOB_ID=str(free_job()))
    return [(["bash", "scripts/train_slurm.sh", *arguments], env | {"PATH": f"{folder}{os.pathsep}{env['PATH']}"})]


def free_job() -> int:
    """A job number n for which port 20000 + n, which the ranks will derive from it, is free."""
    for job in range(os.getpid() % 10000, 20000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", 20000 + job))
            except OSError:
                continue
            return job
    raise AssertionError("no free port")


def learned(out: Path) -> list[dict]:
    """For each of the first steps {"task", "loss", "grad_norm"}, from the run's metrics."""
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    steps = [record["tasks"] for record in records if record["kind"] == "train"][:STEPS]
    assert all(len(tasks) == 1 for tasks in steps)
    return [
        {"task": name, "loss": values["loss"], "grad_norm": values["grad_norm"]}
        for tasks in steps
        for name, values in tasks.items()
    ]


def world(out: Path) -> int:
    """How many ranks took part, as the only checkpoint says."""
    [folder] = (out / "checkpoints").glob("step_*")
    return json.loads((folder / "state.json").read_text())["world_size"]


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def launch_and_stop(launcher, code: int, corpus: Path, folder: Path) -> Path:
    """Train on two ranks that share the experts until the launcher gets SIGTERM after four steps, and ends with `code`; the
    folder of the run."""
    out, log = folder / "run", folder / "log"
    [(command, env)] = launcher(training(corpus, out, "train.ep_size=2", *FOR_EVER), folder)
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env=environment() if env is None else env, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    family = []
    try:
        deadline = time.monotonic() + TIMEOUT
        while f"step {STEPS}/" not in log.read_text() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        family = descendants(child)
        child.send_signal(signal.SIGTERM)
        assert child.wait(90) == code, log.read_text()
        assert not psutil.wait_procs(family, timeout=10)[1]
    finally:
        for process in [*family, *descendants(child)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        child.kill()
        child.wait(10)
    text = log.read_text()
    [saved] = (out / "checkpoints").glob("step_*")
    assert text.count("stopped after step ") == 1 and f"saved:   {saved}" in text, text
    assert (out / "checkpoints" / "latest").read_text().strip() == saved.name
    return out


@pytest.fixture(scope="module")
def under_torchrun(digits_corpus, tmp_path_factory):
    """What the others are compared with. torchrun has an exit code of its own; ranks under it save all the same."""
    out = launch_and_stop(torchrun, 1, digits_corpus, tmp_path_factory.mktemp("torchrun"))
    steps = learned(out)
    assert [step["task"] for step in steps] == ["image_text", "film_text", "film_speech_text", "speech_text"] and world(out) == 2
    return steps


def assert_alike(steps: list[dict], expected: list[dict]) -> None:
    assert [step["task"] for step in steps] == [step["task"] for step in expected]
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in steps] == pytest.approx([step[name] for step in expected], rel=1e-5)


def test_deepspeed_by_the_script_trains_alike_and_stops(digits_corpus, under_torchrun, tmp_path):
    out = launch_and_stop(deepspeed, 75, digits_corpus, tmp_path)
    assert world(out) == 2
    assert_alike(learned(out), under_torchrun)


@pytest.mark.parametrize("launcher", [two_nodes, accelerate, srun])
def test_launchers_train_alike(launcher, digits_corpus, under_torchrun, tmp_path):
    out = tmp_path / "run"
    run_together(launcher(training(digits_corpus, out, "train.ep_size=2"), tmp_path), timeout=TIMEOUT)
    assert world(out) == 2
    assert_alike(learned(out), under_torchrun)


PROGRAM = """
import sys
from imp_ds import get_recipe, train
recipe, *changes, _, out = sys.argv[1:]
train(get_recipe(recipe).override([change for change in changes if change != "--set"]), out)
"""


def test_a_program_that_trains_by_a_call_learns_from_the_same_gradients(digits_corpus, under_torchrun, tmp_path):
    """In one process without a launcher, which has what the command line has."""
    out = tmp_path / "run"
    said = run([sys.executable, "-c", PROGRAM, *training(digits_corpus, out)], timeout=TIMEOUT).output
    assert world(out) == 1 and f"step {STEPS}/{STEPS}" in said
    # the norm of the gradient over all ranks: one process that has the whole batch must find the same
    norms = [step["grad_norm"] for step in learned(out)]
    assert norms == pytest.approx([step["grad_norm"] for step in under_torchrun], rel=1e-4)
