"""`eval MODEL` on a small corpus of files, a saved model and a saved processor; and the example of its model card."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from imp_ds.commands.evaluate import evaluate
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.errors import UserError
from imp_ds.evaluation import Metric, build_evaluators
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.card import write_card
from imp_ds.families.imp import model_card
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp import ImpFeatureExtractor, ImpImageProcessor, ImpProcessor, ImpVideoProcessor
from imp_ds.objectives import Contrastive
from imp_ds.tasks import Source, Task

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
ROWS = 11


def write_corpus(root) -> None:
    folder = root / "images" / "test"
    folder.mkdir(parents=True)
    lines = []
    for i in range(ROWS):
        name, colour = list(COLOURS.items())[i % 3]
        Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "label": i % 3, "captions": [f"a {name} square", "a square"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (root / "classes.json").write_text(json.dumps({"images": {"names": list(COLOURS), "templates": ["a {} square", "{}"]}}))


def make_run(root) -> RunConfig:
    source = Source(path="images", vision="file_name", text="captions", label="label")
    views = Views(vision=VisionView(height=16, width=16), text=TextView(length=8))
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, common_dim=8, num_experts=2)
    shape |= dict(vision_patch=(1, 8, 8), vision_max=(4, 16, 16), group_examples=1, moe_layers="last:1")
    matching = Contrastive(pairs=[("vision", "text")])
    return RunConfig(
        name="colours",
        model=ModelSettings(size="tiny", **shape),
        data=DataSettings(root=str(root)),
        tasks=[Task(name="image_text", source=source, views=views, objectives=[matching], batch_size=4)],
        evaluations=[Evaluation(name="image", modality="vision", source=source, views=views, classes="images")],
        train=TrainSettings(steps=1),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported folder and its corpus."""
    root, folder = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("run") / "model"
    write_corpus(root)
    run = make_run(root)
    captions = [f"a {name} square" for name in COLOURS] * 20
    tokenizer = train_tokenizer(captions, 64, seed=0)
    config = run.model.to_config(len(tokenizer), run.tasks)
    torch.manual_seed(0)
    patch = config.vision_patch
    parts = ImpImageProcessor(size=16, patch=patch), ImpVideoProcessor(frames=4, size=16, patch=patch), ImpFeatureExtractor()
    processor = ImpProcessor(*parts, tokenizer)
    ImpForPreTraining(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    run.save(folder / "run_config.json")
    return folder, root


def test_results_are_printed_written_and_returned(exported, tmp_path, capsys):
    folder, root = exported
    results = evaluate(folder, None, "test", 4, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert set(results) == {"zero_shot/image/top1", "zero_shot/image/mean_per_class_recall"} | {
        f"retrieval/image/{direction}/R@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }
    # The untrained model sees three pictures and three captions: each colour is right or wrong as a whole. Of 11 rows 4 are
    # red, 4 green, 3 blue.
    assert any(results["zero_shot/image/top1"] == pytest.approx(n / 11) for n in (0, 3, 4, 7, 8, 11))
    assert "zero-shot top1" in capsys.readouterr().out
    # groups of one example: the batch size changes nothing
    assert evaluate(folder, root, "test", 3) == pytest.approx(results)


def test_thumbnails_and_labels_are_those_of_the_rows(exported):
    folder, root = exported
    (evaluator,) = build_evaluators(make_run(root), ImpProcessor.from_pretrained(folder), "test")
    assert evaluator.label_names()[:4] == ["red", "green", "blue", "red"]
    pictures = evaluator.thumbnails(3, side=4)
    assert pictures.shape == (3, 3, 4, 4) and pictures.mean((2, 3)).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("change, word", [
    ({"model_path": "nowhere"}, "not the folder of an exported model"),
    ({"data": "nowhere"}, "does not exist"),
    ({"split": "validation"}, "has no split validation"),
    ({"split": "tests"}, "unknown split"),
    ({"batch_size": 0}, "not positive"),
    ({"output": "nowhere/results.json"}, "cannot be written"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(exported, change, word):
    with pytest.raises(UserError, match=word):
        evaluate(**{"model_path": exported[0], **change})


def test_a_damaged_model_is_named_and_a_damaged_picture_counted(exported, tmp_path):
    folder, root = exported
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[:100] if file.suffix == ".safetensors" else file.read_bytes())
    with pytest.raises(UserError, match="the model cannot be loaded"):
        evaluate(copy)
    data = tmp_path / "corpus"
    write_corpus(data)
    (data / "images" / "test" / "5.png").write_bytes(b"not a picture")
    assert evaluate(folder, data)["left_out/image"] == 1.0


def test_the_model_card_is_valid_and_neither_its_example_nor_an_evaluation_needs_deepspeed(exported):
    folder, root = exported
    run = RunConfig.load(folder)
    config = run.model.to_config(64, run.tasks)
    (folder / "results.png").write_bytes(b"")
    results = [Metric("zero_shot/image/top1", 0.9625, "share", "higher"), Metric("train/steps", 1, "count")]
    path = write_card(
        folder, run, model_card.card(run, config, results, str(folder)), results, {"torch": "2.13.0"}, experts=2, steps=1,
        world_size=2, parameters=12345, examples=4, tokens=48,
    )  # fmt: skip
    card = ModelCard.load(path)
    assert card.data.library_name == "transformers" and "mixture-of-experts" in card.data.tags and card.data.license is None
    stated = ("| `zero_shot/image/top1` | 96.2 % |", "12,345", "| torch | 2.13.0 |", "layers 1 (of 2", "![", "NCE of vision-text")
    for text in stated:
        assert text in card.text, text
    assert "train/steps" not in card.text
    example = re.search(r"```python\n(.*?)```", card.text, re.DOTALL).group(1)
    code = f"import sys; sys.modules['deepspeed'] = None\n{example}\nprint('scores', *scores.shape)\n"
    code += f"from imp_ds.commands.evaluate import evaluate\nevaluate({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "scores 1 2" in done.stdout and "zero-shot top1" in done.stdout, done.stderr


def test_another_recipe_scores_its_own_source_by_what_the_model_has_learned(exported, tmp_path, capsys):
    folder, root = exported
    (tmp_path / "test").mkdir()
    for split in ("test/red", "test/blue"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.full((16, 16, 3), COLOURS[split[5:]], np.uint8)).save(tmp_path / split / "0.png")
    recipe = make_run(tmp_path)
    source = Source(path=".", vision="file_name", label="label")
    seen = dict(modality="vision", source=source, views=recipe.evaluations[0].views, templates=["a {} square"])
    recipe.evaluations = [Evaluation(name="own", **seen)]
    results = evaluate(folder, recipe=recipe, settings=["evaluations.own.name=paint"])
    assert set(results) == {"zero_shot/paint/top1", "zero_shot/paint/mean_per_class_recall"}
    assert results["zero_shot/paint/top1"] in (0, 0.5, 1)
    assert "paint: 2\n" in capsys.readouterr().out  # the rows that were read, in a plain line
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(folder, recipe=make_run(root), settings=["evaluations=[]"])
