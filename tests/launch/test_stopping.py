"""A request to stop, as it arrives under each launcher: a checkpoint, no rank left behind, and the exit code that is promised."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.processes import ROOT, environment, free_port

pytestmark = pytest.mark.distributed


def training(corpus: Path, out: Path) -> list:
    """The arguments of a run that would take for ever."""
    changes = ["data.workers=1", "evaluations=[]", "train.steps=1000000", "train.log_every=1", "model.num_hidden_layers=2"]
    changes += [f"data.root={corpus}", "train.ep_size=2"]
    return ["digits_debug", *(part for change in changes for part in ("--set", change)), "--output_dir", out, "--resume", "auto"]


def by_script(arguments: list) -> tuple[list, dict]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return ["bash", "scripts/train_one_node.sh", *arguments], environment(PATH=path, RANKS="2")


def by_torchrun(arguments: list) -> tuple[list, dict]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    return [*launcher, "-m", "imp_ds", "train", *arguments], environment()


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


# torchrun has an exit code of its own; ranks under it save all the same
@pytest.mark.parametrize("launcher, number, code", [(by_script, signal.SIGTERM, 75), (by_torchrun, signal.SIGTERM, 1)])
def test_a_signal_to_the_launcher_ends_in_a_checkpoint(launcher, number, code, digits_corpus, tmp_path):
    (command, env), out, log = launcher(training(digits_corpus, tmp_path / "run")), tmp_path / "run", tmp_path / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
        )
    family = []
    try:
        deadline = time.monotonic() + 200
        while "step 3/" not in log.read_text() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        family = descendants(child)
        child.send_signal(number)
        assert child.wait(90) == code, log.read_text()
        assert not psutil.wait_procs(family, timeout=10)[1]
    finally:
        for process in [*family, *descendants(child)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        child.kill()
        child.wait(10)
    text = log.read_text()
    [folder] = (out / "checkpoints").glob("step_*")
    assert text.count("stopped after step ") == 1 and f"saved:   {folder}" in text, text
    assert (out / "checkpoints" / "latest").read_text().strip() == folder.name
