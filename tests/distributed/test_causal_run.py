"""A family of models from outside of the package, through the whole trainer: planned, trained by one process and by two under a
launcher, watched, stopped and resumed, exported, loaded, evaluated."""

import json
import random
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import causal_commands
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.processes import ROOT, environment, free_port, run_together
from helpers.ranks import Ranks, command, end_well

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
FILES = ("helpers/causal_model.py", "distributed/causal_family.py", "distributed/causal_recipe.py")
WORDS = "a the red blue dog cat runs sits on under mat tree".split()


def write_texts(folder: Path) -> None:
    """40 texts to train on and 11 to validate: 2 to 9 words each."""
    draw = random.Random(0)
    (folder / "texts").mkdir()
    for split, count in (("train", 40), ("validation", 11)):
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(count)]
        pq.write_table(pa.table({"caption": texts}), folder / "texts" / f"{split}.parquet")


def arguments(folder: Path, run: str, *more: str) -> list[str]:
    """Of `imp_ds train`: six steps, an evaluation and a checkpoint after three and at the end."""
    return [str(folder / "causal_recipe.py"), "--output_dir", str(folder / run), *more]


def launch(folder: Path) -> None:
    """Two ranks by the launcher of deepspeed."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", free_port()]
    line = [*launcher, "--module", "imp_ds", "train", *arguments(folder, "launched", "--set", "train.ep_size=2")]
    (done,) = run_together([(line, environment())], timeout=240, cwd=ROOT)
    assert "step 6, validation: tokens said loss" in done.output, done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The family's files, a corpus beside them, and the runs `alone`, `launched`, and `stopped`, which was resumed."""
    folder = tmp_path_factory.mktemp("family")
    (folder / "helpers").mkdir()
    for name in FILES:
        shutil.copy(HERE.parent / name, folder / name.removeprefix("distributed/"))
    write_texts(folder)
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(launch, folder)
        alone = Ranks(command, "train", *arguments(folder, "alone"), ranks=1, folder=folder / "logs_alone")
        line = arguments(folder, "stopped", "--set", "train.ep_size=2", "--resume", "auto")
        ended = Ranks(command, "train", *line, ranks=2, folder=folder / "logs_stopped", environ={"STOP": "1"}).wait(150)
        assert ended.codes == [75, 75] and "stopped after step 4" in str(ended), str(ended)
        end_well([alone, Ranks(command, "train", *line, ranks=2, folder=folder / "logs_resumed")], 150)
        launched.result()
    runs = ["alone", "launched", "stopped"]
    used = Ranks(causal_commands.use, str(folder), runs, ranks=1, folder=folder / "logs_used")
    end_well([used], 150)
    return folder


def steps(run: Path) -> dict[int, tuple[float, float]]:
    """{step: (loss, gradient norm)}."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train"]
    return {record["step"]: tuple(record["tasks"]["write"][name] for name in ("loss", "grad_norm")) for record in trained}


def test_it_is_planned(folder):
    printed = (folder / "logs_used" / "rank0.log").read_text()
    assert "causal_texts: 1 node(s) x 4 = 4 rank(s), ep_size 2" in printed and "text 12" in printed
    counted = json.loads((folder / "facts.json").read_text())["counted"]
    # 96 tokens, width 16: queries, keys and values, output, attention over 12 tokens, the router of 4 experts, two of them of
    # width 32 for each token, in two layers; the head; forward, and twice as much backward
    layer = 16 * 48 + 16 * 16 + 2 * 12 * 16 + 16 * 4 + 2 * 2 * 16 * 32
    assert counted["flops"] == 3 * 2 * 96 * (2 * layer + 16 * counted["words"])
    # of a rank of four 24 tokens' rows, forward and backward there and back in both layers: 2 * 2 rounds of 48 rows of 16 float32
    assert counted["exchanges"] == [["all_to_all", 2 * 2 * 48 * 16 * 4, 4]] * 2
    # of an expert 2 * 16 * 32 parameters, and a token meets two of four
    assert counted["active"] == counted["encoder"] - 2 * 2 * 2 * 16 * 32


def test_two_ranks_learn_what_one_learns(folder):
    alone, launched = steps(folder / "alone"), steps(folder / "launched")
    assert list(alone) == list(launched) == [1, 2, 3, 4, 5, 6]
    for step, found in launched.items():
        assert found == pytest.approx(alone[step], rel=1e-4), step
    assert alone[6][0] < alone[1][0] - 0.3


def test_a_stopped_run_goes_on_bit_for_bit(folder):
    assert "resuming from" in (folder / "logs_resumed" / "rank0.log").read_text()
    assert steps(folder / "stopped") == steps(folder / "launched")
    weights = [load_file(folder / f"{run}_model" / "model.safetensors") for run in ("stopped", "launched")]
    assert weights[0].keys() == weights[1].keys() and all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_tensorboard_has_its_curves(folder):
    tags = EventAccumulator(str(folder / "alone" / "tensorboard")).Reload().Tags()["scalars"]
    for tag in ("train/write/loss", "tokens/said/loss", "perf/mfu/write", "moe/layer1/usage_expert3_text"):
        assert tag in tags, tag


def test_its_export_loads_scores_and_has_a_card(folder):
    facts, scores = (json.loads((folder / name).read_text()) for name in ("facts.json", "scores.json"))
    assert facts["scale"] == 0.5 and facts["missing"] == [] and 1 < facts["loss"] < 5
    results = json.loads((folder / "alone" / "results.json").read_text())
    assert scores == pytest.approx({"tokens/said/loss": results["tokens/said/loss"]})
    card = (folder / "alone_model" / "README.md").read_text()
    for said in ("each token meets two of four experts", "the next token of a text", "`tokens/said/loss`", "mixture-of-experts",
                 "On the validation split."):  # fmt: skip
        assert said in card, said
