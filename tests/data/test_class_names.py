"""Class names that are left to the data: put into the run, and learned by the tokenizer."""

import json
from types import SimpleNamespace

import pytest

from imp_ds.config import ModelSettings, RunConfig, TrainSettings
from imp_ds.data.class_names import with_class_names
from imp_ds.errors import UserError
from imp_ds.tasks import Classification, Likelihood, Source, Task, Views, VisionView
from imp_ds.train.processor import build_processor

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
