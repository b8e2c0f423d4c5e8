"""A run that is killed and resumed has the losses of the run that was not, through the command line on two ranks.

Its model has a dropout of torch's own, which draws from each rank's generator.
"""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from helpers.ranks import Ranks, command, run_ranks

pytestmark = pytest.mark.distributed

STEPS, SAVE_EVERY = 12, 4


def arguments(corpus: Path, output_dir: Path) -> list[str]:
    """Two rounds of the six tasks on two expert-parallel ranks; the loader has a worker process, as in a real run."""
    changes = {
        "train.ep_size": 2, "train.steps": STEPS, "train.save_every": SAVE_EVERY, "train.log_every": 1, "data.root": corpus,
        "data.workers": 1,
    }  # fmt: skip
    return ["train", "digits_debug", "--output_dir", str(output_dir)] + [
        f"--set={path}={value}" for path, value in changes.items()
    ]


def losses(output_dir: Path) -> dict[int, tuple[str, float, float]]:
    """{step: (task, loss, gradient norm)}; a step may be recorded once only."""
    found = {}
    for line in (output_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            assert record["step"] not in found
            ((task, values),) = record["tasks"].items()
            found[record["step"]] = (task, values["loss"], values["grad_norm"])
    return found


def with_dropout(*command_line: str) -> None:
    """The command, of a model whose last norm is followed by torch's dropout."""
    import torch.nn.functional as F

    from imp_ds.families import family

    build = family.build_module

    def build_with_dropout(*arguments):
        model = build(*arguments)
        model.imp.norm.register_forward_hook(lambda norm, inputs, output: F.dropout(output, 0.1, norm.training))
        return model

    family.build_module = build_with_dropout
    command(*command_line)


def kill_after_a_checkpoint(corpus: Path, output_dir: Path, logs: Path) -> int:
    """SIGKILL to everything as soon as a checkpoint is published; returns its step."""
    ranks = Ranks(with_dropout, *arguments(corpus, output_dir), ranks=2, folder=logs)
    pointer, deadline = output_dir / "checkpoints" / "latest", time.monotonic() + 120
    while not pointer.exists() and ranks.alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    ranks.kill()
    ended = ranks.wait(10)
    assert ended.codes == [-signal.SIGKILL] * 2, str(ended)
    return int(pointer.read_text().removeprefix("step_"))


def without_moments(*command_line: str) -> None:
    """The command, with a fault: a resumed optimizer knows its weights and its count of steps, but not its moments."""
    from imp_ds.train import checkpoint
    from imp_ds.train.engine import master_state

    checkpoint.Reader.load_optimizer = lambda reader, engine: master_state.prepare(engine, reader.state["adam_steps"])
    with_dropout(*command_line)


@pytest.fixture(scope="module")
def killed(digits_corpus, tmp_path_factory) -> tuple[Path, int]:
    """The folder of a killed run, to be copied, and the step of its newest checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    return folder / "run", kill_after_a_checkpoint(digits_corpus, folder / "run", folder / "logs")


@pytest.fixture(scope="module")
def straight(digits_corpus, tmp_path_factory) -> Path:
    """The folder of the run that was not killed."""
    folder = tmp_path_factory.mktemp("straight")
    run_ranks(with_dropout, *arguments(digits_corpus, folder / "run"), ranks=2, folder=folder / "logs", limit_s=120)
    assert sorted(losses(folder / "run")) == list(range(1, STEPS + 1))
    return folder / "run"


def resume(function, corpus: Path, killed: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the killed run's folder, resumed there, and what rank 0 printed."""
    shutil.copytree(killed, tmp_path / "run")
    line = [*arguments(corpus, tmp_path / "run"), "--resume", "auto"]
    return tmp_path / "run", run_ranks(function, *line, ranks=2, folder=tmp_path / "logs", limit_s=120).outputs[0]


def test_a_killed_run_goes_on_with_the_same_losses(digits_corpus, killed, straight, tmp_path):
    folder, step = killed
    assert step in (4, 8) and max(losses(folder)) < STEPS
    folder, output = resume(with_dropout, digits_corpus, folder, tmp_path)
    assert f"resuming from {folder / 'checkpoints'}/step_{step:08d}" in output
    assert f"step {step + 1}/12" in output and f"step {step}/12" not in output
    assert losses(folder) == losses(straight)  # exactly, before and after the kill
    scores = [json.loads((run / "results.json").read_text()) for run in (straight, folder)]
    same = [{name: value for name, value in s.items() if not name.startswith("train/")} for s in scores]
    assert same[0] == same[1] and "zero_shot/image/top1" in same[0]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", "step_00000008", "step_00000012"]


def test_the_comparison_would_see_a_lost_optimizer(digits_corpus, killed, straight, tmp_path):
    folder, step = killed
    folder, _ = resume(without_moments, digits_corpus, folder, tmp_path)
    found, expected = losses(folder), losses(straight)
    assert found[step + 1][1] == expected[step + 1][1]  # the weights were there
    assert max(abs(found[s][1] - expected[s][1]) for s in range(step + 2, STEPS + 1)) > 1e-3
