"""`data tokenizer`: a folder that AutoTokenizer loads, and true numbers about the captions."""

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer

from imp_ds.commands.tokenizer_command import Fit, measure, train_on_captions
from imp_ds.config import RunConfig, TrainSettings
from imp_ds.errors import UserError
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, MaskedLanguage
from imp_ds.tasks import Source, Task

CAPTIONS = ["red", "blue sky", "a red sky", "a blue sky and a red sea"] * 5


def write_texts(root, name: str, captions: list[str]) -> None:
    (root / name / "train").mkdir(parents=True)
    lines = (json.dumps({"text": caption}) for caption in captions)
    (root / name / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def make_run(root, *paths: str) -> RunConfig:
    """Two tasks that share their sources, of which one sees its captions at two lengths."""
    sources = [Source(path=path, text="text") for path in paths]
    shape = dict(source=sources[0], additional_sources=sources[1:], objectives=[MaskedLanguage()], batch_size=4)
    short, long = Views(text=TextView(length=2)), Views(text=TextView(length=5))
    tasks = [Task(name="words", views=long, additional_views=[short], **shape), Task(name="more", views=long, **shape)]
    return RunConfig(
        name="own", model=ModelSettings(size="tiny"), tasks=tasks, train=TrainSettings(steps=1),
        data={"root": str(root), "cache_dir": str(root / "cache")},
    )  # fmt: skip


def test_the_folder_is_the_tokenizer_of_the_captions_and_the_numbers_are_true(tmp_path, capsys):
    write_texts(tmp_path, "one", CAPTIONS[:8])
    write_texts(tmp_path, "two", CAPTIONS[8:])
    train_on_captions(make_run(tmp_path, "one", "two"), tmp_path / "own", vocab_size=60)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "own", local_files_only=True)
    assert tokenizer.get_vocab() == train_tokenizer(CAPTIONS, 60).get_vocab()
    assert tokenizer.model_max_length == 5 and tokenizer.mask_token == "<mask>"
    lengths = [len(tokenizer.tokenize(caption)) for caption in CAPTIONS]
    printed = capsys.readouterr().out
    assert f"{len(tokenizer):,} tokens" in printed
    assert f"20 captions: 100.00 % known in full, {sum(lengths) / 20:.1f} tokens on average" in printed
    # every word is a token: 1, 2, 3 and 7 of them
    assert sorted(set(lengths)) == [1, 2, 3, 7]
    rows = [" ".join(line.replace("│", " ").split()) for line in printed.splitlines() if "│" in line]
    assert rows == ["words 2 tokens 20 10 (50.0 %)", "words 5 tokens 20 5 (25.0 %)", "more 5 tokens 20 5 (25.0 %)"]


def test_captions_are_counted_whole():
    tokenizer = train_tokenizer(CAPTIONS, 60, max_length=2)
    fit = measure(tokenizer, ["red", "a red sky", "a red 海", "blue", "red"])  # the sea is a space and a letter that is unknown
    assert fit == Fit(Counter({1: 3, 3: 1, 4: 1}), 1) and fit.coverage == 0.8
    both = Fit(Counter({1: 3, 4: 1}), 1) + Fit(Counter({4: 2, 9: 2}), 1)
    assert both == Fit(Counter({1: 3, 4: 3, 9: 2}), 2)
    assert (both.captions, both.mean_tokens, both.coverage) == (8, (3 + 12 + 18) / 8, 0.75)
    assert [both.longer(length) for length in (0, 1, 4, 8, 9)] == [8, 5, 2, 2, 0]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        train_on_captions(make_run(tmp_path, "there is no such source"), tmp_path / "own")


def test_a_recipe_without_captions(tmp_path):
    from PIL import Image

    (tmp_path / "images" / "train").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "images" / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "label": 0}\n')
    run = make_run(tmp_path, "images")
    run.tasks = [Task(
        name="digit", source=Source(path="images", vision="file_name", label="label"), views=Views(vision=VisionView()),
        objectives=[Classification(modality="vision", num_classes=2)], batch_size=1,
    )]  # fmt: skip
    with pytest.raises(UserError, match="no captions"):
        train_on_captions(run, tmp_path / "own")
    assert not (tmp_path / "own").exists()
