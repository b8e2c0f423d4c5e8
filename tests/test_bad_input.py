"""Bad input to `train` on two ranks: one clear message, exit code 2 everywhere, no traceback, no hang, nothing half written."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from helpers.ranks import Ranks, command, run_ranks
from imp_ds.data.corpus import open_corpus
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.recipes import get_recipe
from imp_ds.train.engine.ds_config import FOLDER
from imp_ds.train.schedule import build_schedule

pytestmark = pytest.mark.distributed

LIMIT_S = 60
BASE = {"train.ep_size": 2, "train.steps": 12, "train.save_every": 4, "data.workers": 0}


def train_line(output_dir: Path, corpus: Path, *more: str, recipe: str = "digits_debug", **settings) -> list[str]:
    """The command line; a setting is given as `train__steps=3`."""
    changes = BASE | {"data.root": corpus} | {path.replace("__", "."): value for path, value in settings.items()}
    return [
        "train",
        recipe,
        "--output_dir",
        str(output_dir),
        *(f"--set={path}={value}" for path, value in changes.items()),
        *more,
    ]


def refused(line: list[str], logs: Path, *, ranks: int = 2) -> str:
    """Run the command on the ranks, which must refuse it with one block between them; returns the block."""
    ended = Ranks(command, *line, ranks=ranks, folder=logs).wait(LIMIT_S)
    assert ended.codes == [2] * ranks, str(ended)
    assert not any("Traceback" in output for output in ended.outputs), str(ended)
    assert "".join(ended.outputs).count("error") == 1, str(ended)
    lines = ended.outputs[0].splitlines()
    start = next(i for i, text in enumerate(lines) if text.startswith("error: "))
    return "\n".join(lines[start:])


def snapshot(folder: Path) -> dict[str, str]:
    """{path: hash} of all files and folders below a folder; {} when there is none."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@dataclass
class Case:
    """Settings and arguments that cannot be used, and what the message must say of them, line by line."""

    what: str
    settings: dict = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    recipe: str = "digits_debug"
    got: str | None = None
    allowed: str | None = None
    fix: str | None = None


CASES = {
    "unknown recipe": Case("unknown recipe", recipe="digit", got="digit", allowed="did you mean digits"),
    "unknown key": Case("unknown key in --set: train.step", {"train.step": 3}, got="step", allowed="did you mean steps"),
    "wrong type": Case("wrong value for train.steps", {"train.steps": "many"}, got="'many'", allowed="integer, at least 1"),
    "missing corpus": Case("the data folder /nowhere does not exist", {"data.root": "/nowhere"}, fix="corpus digits"),
    "experts": Case(
        "the experts cannot be shared out equally", {"model.num_experts": 3},
        got="3 experts over train.ep_size = 2", allowed="1, 3",
        fix="--set train.ep_size=N",
    ),
    "ranks": Case(
        "the ranks cannot be cut into expert groups", {"train.ep_size": 4}, got="2 ranks, train.ep_size = 4", allowed="1, 2",
        fix="--set train.ep_size=N",
    ),
    "batch": Case(
        "task film_text: the batch cannot be shared out equally", {"tasks.film_text.batch_size": 9}, got="9 over 2 ranks",
        allowed="multiples of 2", fix="--set tasks.film_text.batch_size=10",
    ),
    "engine": Case(
        "ZeRO 0 with experts", arguments=["--deepspeed_config", str(FOLDER / "cpu_zero0.json")], got="clip = 1.0",
        allowed="ZeRO 1, 2 or 3", fix="--set optimizer.clip=0",
    ),
    "other file": Case(
        "the DeepSpeed configuration and the run disagree about ep_size", {"train.ep_size": 1},
        ["--deepspeed_config", str(FOLDER / "cpu_zero2_ep2.json")],
        got="2 in the file, 1 in the run", fix="--set train.ep_size=2",
    ),
    "missing file": Case(
        "the DeepSpeed configuration cannot be read", arguments=["--deepspeed_config", "nowhere.json"], got="nowhere.json",
        allowed="cpu_zero2.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_cannot_be_trained_is_refused_before_anything_is_written(case, digits_corpus, tmp_path):
    line = train_line(tmp_path / "run", digits_corpus, *case.arguments, recipe=case.recipe, **case.settings)
    message = refused(line, tmp_path / "logs")
    assert message.startswith(f"error: {case.what}")
    for label, text in (("got", case.got), ("allowed", case.allowed), ("fix", case.fix)):
        found = [part for part in message.splitlines() if part.startswith(f"  {label}:")]
        assert text is None or len(found) == 1 and text in found[0], message
    assert not (tmp_path / "run").exists()


def test_a_literal_that_disagrees_with_the_run_is_named_with_both(digits_corpus, tmp_path):
    ds = json.loads((FOLDER / "cpu_zero2.json").read_text())
    ds["gradient_clipping"] = 5.0
    (tmp_path / "mine.json").write_text(json.dumps(ds))
    line = train_line(tmp_path / "run", digits_corpus, "--deepspeed_config", str(tmp_path / "mine.json"))
    message = refused(line, tmp_path / "logs")
    assert "disagree about gradient_clipping" in message and "5.0 in the file, 1.0 in the run" in message
    assert "--set optimizer.clip" in message and not (tmp_path / "run").exists()


# --- the corpus


@pytest.fixture
def corpus(digits_corpus, tmp_path) -> Path:
    """A copy of the corpus, to damage."""
    return shutil.copytree(digits_corpus, tmp_path / "corpus")


def _bad_lines(corpus: Path) -> None:
    file = corpus / "speech" / "train" / "metadata.jsonl"
    file.write_text('{"file_name": "a.flac", \n' * len(file.read_text().splitlines()))


def _no_column(corpus: Path) -> None:
    file = corpus / "images" / "train" / "metadata.jsonl"
    file.write_text(file.read_text().replace('"captions"', '"titles"'))


DAMAGE = {
    "lines that are not JSON": (_bad_lines, "speech[train]: its samples cannot be read: bad JSON"),
    "a column that is missing": (_no_column, "images[train]: its samples cannot be read: missing column"),
    "no metadata": (lambda c: (c / "images/train/metadata.jsonl").unlink(), "images/train has no metadata.jsonl"),
    "a folder that is missing": (lambda c: shutil.rmtree(c / "films"), "films/train does not exist"),
}


@pytest.mark.parametrize("damage, what", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_corpus_is_refused_before_anything_is_written(damage: Callable, what, corpus, tmp_path):
    damage(corpus)
    message = refused(train_line(tmp_path / "run", corpus), tmp_path / "logs")
    assert what in message.splitlines()[0]
    assert not (tmp_path / "run").exists()


def image_of_rank_1_only(corpus: Path) -> tuple[str, int]:
    """An image that is not touched before some step in the middle of the run, and then by rank 1; and that step, from 0."""
    run = get_recipe("digits_debug").override([f"data.root={corpus}", f"data.cache_dir={corpus / 'cache'}"])
    readers = open_corpus(run)
    schedule = build_schedule(run.train.schedule, run.tasks, run.train.seed)
    first = {}
    for step in range(BASE["train.steps"]):
        for rank in (0, 1):
            batches = StepBatches(run.tasks, schedule, readers, None, seed=run.data.seed, rank=rank, world=2, cache_mb=0)
            reader = readers[schedule.at(step).name][0]
            if reader.source.path == "images":
                for index in batches.sample_indices(step):
                    first.setdefault(reader.key(index.row), (step, rank))
    return next((key, step) for key, (step, rank) in first.items() if 5 <= step < 11 and rank == 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_that_one_rank_meets_is_left_out_and_named(workers, corpus, tmp_path):
    key, step = image_of_rank_1_only(corpus)
    path = corpus / "images" / "train" / key
    path.write_bytes(path.read_bytes()[:60])
    line = train_line(tmp_path / "run", corpus, data__workers=workers)
    ended = Ranks(command, *line, ranks=2, folder=tmp_path / "logs").wait(LIMIT_S)
    assert ended.codes == [0, 0], str(ended)
    assert "left out: images[train]" in ended.outputs[0] and "unreadable image" in ended.outputs[0]
    (found,) = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert (found["key"], found["step"], found["reason"]) == (key, step + 1, "unreadable image")
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "train"] == list(range(1, 13))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["data/images[train]/left_out"] == 1


def test_too_many_damaged_files_stop_both_ranks(corpus, tmp_path):
    for path in sorted((corpus / "images" / "train").glob("*.png"))[::4]:
        path.write_bytes(path.read_bytes()[:60])
    changes = {"tasks__image_text__batch_size": 64, "train__steps": 30}
    message = refused(train_line(tmp_path / "run", corpus, **changes), tmp_path / "logs")
    assert message.startswith("error: too many samples of images[train] cannot be used") and "fix: " in message
    assert "data.max_rejected = 0.05" in message and "rejected.jsonl" in message


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_damaged_file_that_one_rank_meets_in_an_evaluation_is_counted(split, corpus, tmp_path):
    # 10 images in batches of 64 all fit into rank 0's first batch, and rank 1 has none of its own
    row = (corpus / "images" / split / "metadata.jsonl").read_text().splitlines()[0]
    path = corpus / "images" / split / json.loads(row)["file_name"]
    path.write_bytes(path.read_bytes()[:60])
    line = train_line(tmp_path / "run", corpus, train__steps=2, train__eval_every=1)
    ended = Ranks(command, *line, ranks=2, folder=tmp_path / "logs").wait(LIMIT_S)
    assert ended.codes == [0, 0], str(ended)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "evaluation" and line["split"] == split]
    assert found and all(line["results"]["left_out/image"] == 1 for line in found)


# --- the output folder


@pytest.fixture(scope="module")
def trained(digits_corpus, tmp_path_factory) -> Path:
    """The folder of a run of two steps, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    run_ranks(command, *train_line(folder / "run", digits_corpus, train__steps=2), ranks=2, folder=folder / "logs", limit_s=90)
    return folder / "run"


@pytest.fixture
def earlier(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def test_the_folder_of_another_run_is_left_alone(earlier, digits_corpus, tmp_path):
    before = snapshot(earlier)
    message = refused(train_line(earlier, digits_corpus), tmp_path / "logs")
    assert "the output folder holds another run" in message and "allowed: a new or empty folder" in message
    assert "--resume" in message and snapshot(earlier) == before


def test_a_folder_of_other_things_is_left_alone(digits_corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    message = refused(train_line(tmp_path / "run", digits_corpus), tmp_path / "logs")
    assert "the output folder is not empty" in message
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_run_is_not_resumed_as_another(earlier, digits_corpus, tmp_path):
    before = snapshot(earlier)
    message = refused(train_line(earlier, digits_corpus, "--resume", "auto", optimizer__peak_rate=0.5), tmp_path / "logs")
    assert "was started differently" in message and "optimizer.peak_rate: 0.0012 -> 0.5" in message and "allowed:" in message
    assert snapshot(earlier) == before


def test_the_checkpoint_of_another_model_is_named_by_what_differs(earlier, digits_corpus, tmp_path):
    # as when a folder of checkpoints was moved: the run's configuration is this run's, the weights are not
    config = json.loads((earlier / "run_config.json").read_text())
    config["model"]["common_dim"] = 64
    (earlier / "run_config.json").write_text(json.dumps(config, indent=2) + "\n")
    before = snapshot(earlier)
    line = train_line(earlier, digits_corpus, "--resume", "auto", model__common_dim=64, train__steps=4)
    message = refused(line, tmp_path / "logs")
    assert (
        "the checkpoint is of another model" in message and "of another shape: imp.projections" in message and "fix: " in message
    )
    after = snapshot(earlier)
    assert {p for p in before if before[p] != after.get(p)} <= {"run_config.json", ".lock"}  # train.steps = 4; who wrote last
    assert before.keys() == after.keys()


@pytest.mark.parametrize("output", ["/dev/null/run", "file/run", "file", "locked/run", "locked"])
def test_a_folder_that_cannot_be_written_is_named(output, digits_corpus, tmp_path):
    if output.startswith("locked") and os.geteuid() == 0:
        pytest.skip("the superuser may write everywhere")
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "locked").mkdir(mode=0o555)
    before = snapshot(tmp_path)
    message = refused(train_line(tmp_path / output, digits_corpus), tmp_path / "logs")
    assert "the output folder" in message and output in message and "--output_dir DIR" in message
    assert {p: h for p, h in snapshot(tmp_path).items() if not p.startswith("logs")} == before
