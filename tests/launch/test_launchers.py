"""The same four steps under every launcher, by the scripts we ship where there is one: all ranks join, and learn the same."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from helpers.processes import environment, free_port, run, run_together

pytestmark = pytest.mark.distributed
STEPS, TIMEOUT = 4, 180


def training(corpus: Path, out: Path, *options: str) -> list:
    """The arguments of `python -m imp_ds` or of our scripts: four tasks, one step each, without workers or evaluations."""
    changes = [f"data.root={corpus}", "data.workers=0", "evaluations=[]", f"train.steps={STEPS}", *options]
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
    """For each step {"task", "loss", "grad_norm"}, from the run's metrics."""
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    steps = [record["tasks"] for record in records if record["kind"] == "train"]
    assert all(len(tasks) == 1 for tasks in steps)
    return [
        {"task": name, "loss": values["loss"], "grad_norm": values["grad_norm"]}
        for tasks in steps
        for name, values in tasks.items()
    ]


def world(out: Path) -> int:
    """How many ranks took part, as the checkpoint of the last step says."""
    folder = out / "checkpoints" / f"step_{STEPS:08d}"
    return json.loads((folder / "state.json").read_text())["world_size"]


def launch(launcher, corpus: Path, folder: Path) -> Path:
    """Train under a launcher on two ranks that share the experts; the folder of the run."""
    out = folder / "run"
    run_together(launcher(training(corpus, out, "train.ep_size=2"), folder), timeout=TIMEOUT)
    assert world(out) == 2
    return out


@pytest.fixture(scope="module")
def under_torchrun(digits_corpus, tmp_path_factory):
    """What the others are compared with."""
    steps = learned(launch(torchrun, digits_corpus, tmp_path_factory.mktemp("torchrun")))
    assert [step["task"] for step in steps] == ["image_text", "film_text", "film_speech_text", "speech_text"]
    return steps


@pytest.mark.parametrize("launcher", [deepspeed, two_nodes, accelerate, srun])
def test_launchers_train_alike(launcher, digits_corpus, under_torchrun, tmp_path):
    steps = learned(launch(launcher, digits_corpus, tmp_path))
    assert [step["task"] for step in steps] == [step["task"] for step in under_torchrun]
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in steps] == pytest.approx([step[name] for step in under_torchrun], rel=1e-5)


def test_a_plain_process_learns_from_the_same_gradients(digits_corpus, under_torchrun, tmp_path):
    out = tmp_path / "run"
    run([sys.executable, "-m", "imp_ds", "train", *training(digits_corpus, out)], timeout=TIMEOUT)
    assert world(out) == 1
    # the norm of the gradient over all ranks: one process that has the whole batch must find the same
    norms = [step["grad_norm"] for step in learned(out)]
    assert norms == pytest.approx([step["grad_norm"] for step in under_torchrun], rel=1e-4)
