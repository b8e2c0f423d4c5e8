"""Class names that are left to the data: put into the run, and learned by the tokenizer."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from imp_ds.config import RunConfig, TrainSettings
from imp_ds.data.class_names import with_class_names, with_counted_classes
from imp_ds.errors import UserError
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.processor import build_processor
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Likelihood
from imp_ds.planning.plan import plan
from imp_ds.tasks import Source, Task

NAMES = ["red fox", "badger"]


def run_of(*objectives) -> RunConfig:
    source = Source(path="animals", vision="file_name", label="label")
    task = Task(name="animal", source=source, views=Views(vision=VisionView()), objectives=list(objectives), batch_size=4)
    return RunConfig(name="x", model=ModelSettings(size="tiny"), tasks=[task], train=TrainSettings(steps=1))


def readers(*names) -> dict:
    return {"animal": [SimpleNamespace(name=f"source {i}", class_names=n, source=Source(path="x")) for i, n in enumerate(names)]}


def test_names_of_the_data_are_listed_in_the_run_and_known_to_the_tokenizer():
    left_open = Likelihood(inputs=["vision"], templates=["a {}"])
    listed = Likelihood(inputs=["vision"], candidates=["one", "two"], family="counts")
    run = run_of(left_open, listed)
    named = with_class_names(run, readers(NAMES, NAMES))
    assert [o.candidates for o in named.tasks[0].objectives] == [NAMES, ["one", "two"]]
    assert run.tasks[0].objectives[0].candidates == "label_names"  # the given run is as it was
    assert with_class_names(named, readers(None)) == named
    assert RunConfig.model_validate(json.loads(named.model_dump_json())) == named
    # there is no caption: the tokenizer is trained on the candidates alone
    tokenizer = build_processor(run, readers(NAMES)).tokenizer
    assert tokenizer.unk_token_id not in tokenizer("a red fox, a badger".replace(",", ""))["input_ids"]
    config = named.model.to_config(len(tokenizer), named.tasks, tokenizer)
    ids = config.objectives["animal"]["objectives"][0]["candidate_ids"]
    assert [[tokenizer.decode(text) for text in texts] for texts in ids] == [["a red fox"], ["a badger"]]
    assert config.mask_token_id == tokenizer.mask_token_id
    assert config.likelihood_families == ["counts", "vision_classes"]


def test_data_without_names_or_with_different_ones_are_refused():
    run = run_of(Likelihood(inputs=["vision"]))
    with pytest.raises(UserError, match="source 0 names no classes"):
        with_class_names(run, readers(None))
    with pytest.raises(UserError, match="source 1 and source 0"):
        with_class_names(run, readers(NAMES, NAMES[::-1]))


def test_a_run_that_reads_no_text_has_a_tokenizer_all_the_same():
    """A processor has one; it is trained on the names of classes and tasks."""
    run = run_of(Classification(modality="vision", num_classes=2))
    for names, known in ((NAMES, "red fox"), (None, "animal")):
        tokenizer = build_processor(run, readers(names)).tokenizer
        assert tokenizer.decode(tokenizer(known)["input_ids"]) == known


def test_a_head_without_a_number_of_classes_has_those_that_its_source_names():
    run = run_of(Classification(modality="vision"), Likelihood(inputs=["vision"]))
    head, likelihood = with_class_names(run, readers(NAMES, NAMES)).tasks[0].objectives
    assert (head.num_classes, head.names, likelihood.candidates) == (2, NAMES, NAMES)
    given = run_of(Classification(modality="vision", names=["a", "b", "c"]))
    assert with_class_names(given, readers(None)).tasks[0].objectives[0].num_classes == 3
    with pytest.raises(UserError, match="source 0 has one class: badger"):
        with_class_names(run_of(Classification(modality="vision")), readers(["badger"]))


def test_a_number_of_classes_that_no_names_tell_is_said_to_the_line(tmp_path):
    """Labels 0, 4 and 2: five classes."""
    (tmp_path / "animals" / "train").mkdir(parents=True)
    rows = [{"file_name": f"{label}.png", "label": label} for label in (0, 4, 2)]
    (tmp_path / "animals" / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for label in (0, 4, 2):
        Image.new("RGB", (8, 8)).save(tmp_path / "animals" / "train" / f"{label}.png")
    run = run_of(Classification(modality="vision")).override([f"data.root={tmp_path}", f"data.cache_dir={tmp_path / 'cache'}"])
    with pytest.raises(UserError, match=r"num_classes=5\)"):
        with_counted_classes(run)
    with pytest.raises(UserError, match="known to the data alone"):
        ImpForPreTraining(run.model.to_config(20, run.tasks))


def test_a_plan_counts_the_classes_of_the_data(tmp_path):
    for name in ("fox", "red squirrel", "Bär"):
        (tmp_path / "animals" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "animals" / "train" / name / "1.png")
    run = run_of(Classification(modality="vision")).override([f"data.root={tmp_path}", f"data.cache_dir={tmp_path / 'cache'}"])
    counted = with_counted_classes(run)
    assert counted.tasks[0].objectives[0].names == ["Bär", "fox", "red squirrel"]
    given = run_of(Classification(modality="vision", num_classes=3))
    assert plan(counted, 1, 1).parameters == plan(given, 1, 1).parameters
