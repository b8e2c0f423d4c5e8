"""Which run tunes a model: its task, prompts, frozen parameters and samples; and what is refused before anything is trained."""

import json
import shutil

import pytest
import torch
from torch import nn

from helpers.tunable import digits_run, export_untrained
from imp_ds import ImpForPreTraining, ImpProcessor
from imp_ds.commands.tuning import TRAINABLE, Tuning, tuning_run
from imp_ds.config import RunConfig
from imp_ds.data.corpus import open_corpus
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators, by_name, evaluate
from imp_ds.families.imp.initial_weights import load_initial
from imp_ds.families.imp.merging import merge
from imp_ds.families.trainable import freeze_others
from imp_ds.objectives import Classification, Likelihood
from imp_ds.train.engine.engine import parameter_groups

ALL = dict(fraction=1.0)


@pytest.fixture(scope="module")
def folder(digits_corpus, tmp_path_factory):
    return export_untrained(digits_run(digits_corpus), tmp_path_factory.mktemp("tunable") / "model")


def make(folder, evaluation: str = "image", source: RunConfig | None = None, **asked) -> RunConfig:
    run, tokenizer = RunConfig.load(folder), ImpProcessor.from_pretrained(folder).tokenizer
    return tuning_run(folder, run, evaluation, Tuning(**asked), tokenizer, source or run)


def build(run: RunConfig, folder) -> ImpForPreTraining:
    """The model that the run starts with."""
    tokenizer = ImpProcessor.from_pretrained(folder).tokenizer
    model = ImpForPreTraining(run.model.to_config(len(tokenizer), run.tasks, tokenizer))
    load_initial(model, folder, tokenizer)
    freeze_others(model, run.train.trainable)
    return model


def test_the_run_of_prompts(folder, digits_corpus):
    run = make(folder, fraction=0.4, steps=40, batch_size=8, seed=3, prompt_length=4, candidate_prompts="separate")
    (task,) = run.tasks
    (objective,) = task.objectives
    assert task.name == "image" and task.views.names() == ["vision"] and task.batch_size == 8
    assert objective.names[2] == "two" and len(objective.prompts) == 10 and objective.temperature == pytest.approx(0.2, abs=1e-5)
    tokenizer = ImpProcessor.from_pretrained(folder).tokenizer
    assert "two" in tokenizer.decode(objective.prompts[2][0])
    assert (run.model.prompt_length, run.model.candidate_prompts, run.data.seed) == (4, "separate", 3)
    assert run.optimizer.weight_decay == 0 and run.train.init_from == str(folder) and run.data.tokenizer == str(folder)
    # rates: from nothing in a tenth of the steps to the peak, to nothing at the end
    assert [run.learning_rate(step) for step in (0, 4)] == [0.0, 1e-3] and run.learning_rate(40) == pytest.approx(0.0)
    assert len(open_corpus(make(folder, **ALL))["image"][0]) == 30  # three of each digit, of which 1.2 are one
    assert len(open_corpus(run)["image"][0]) == 10


def test_what_is_trained_and_what_the_optimizer_knows(folder):
    kinds = {}
    for method in TRAINABLE:
        model = build(make(folder, method=method, **ALL), folder)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        known = [p for group in parameter_groups(model, 0.0) for p in group["params"]]
        assert {id(p) for p in known} == {id(model.get_parameter(name)) for name in trained}
        kinds[method] = trained
    head = {f"objectives.image.parts.0.head.{name}" for name in ("weight", "bias")}
    assert kinds["linear"] == head
    assert kinds["full"] == {name for name, _ in build(make(folder, method="full", **ALL), folder).named_parameters()}
    for name in kinds["prompt"] - head - {"objectives.image.parts.0.head.similarity"}:
        assert ".prompts." in name or "norm" in name, name
    norms = {"imp.norm.weight", "imp.blocks.1.feed_forward_norm.weight"}
    assert norms | {"imp.blocks.0.attention.prompts.vectors"} <= kinds["prompt"]
    assert "imp.blocks.0.attention.qkv.weight" not in kinds["prompt"]


def test_at_the_start_a_tuned_model_scores_what_the_model_scores(folder, digits_corpus):
    """The head begins with zeros: without prompts nothing differs, neither on the validation nor on the test split."""
    run = make(folder, method="full", **ALL)
    processor = ImpProcessor.from_pretrained(folder)
    evaluators = build_evaluators(RunConfig.load(folder), processor, "test")
    before = by_name(evaluate(ImpForPreTraining.from_pretrained(folder), evaluators))
    after = by_name(evaluate(build(run, folder), build_evaluators(run, processor, "test")))
    assert after["tuned/image/top1"] == after["zero_shot/image/top1"] == before["zero_shot/image/top1"]
    assert after["tuned/image/top5"] == before["zero_shot/image/top5"]
    assert not [name for name in before if name.startswith("tuned/")]


def learn(model: ImpForPreTraining, batch, rate: float, steps: int = 40) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(parameters, rate), []
    for _ in range(steps):
        loss, _, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method, rate", [("prompt", 1e-2), ("linear", 3e-1), ("full", 2e-3)])
def test_every_method_learns_and_changes_nothing_else(folder, method, rate):
    from imp_ds.data.loading.collation import Collator
    from imp_ds.data.loading.step_batches import StepBatches
    from imp_ds.train.schedule import build_schedule

    run = make(folder, method=method, batch_size=40, **ALL)
    processor = ImpProcessor.from_pretrained(folder)
    batch = StepBatches(
        run.tasks, build_schedule("rotation", run.tasks, 0), open_corpus(run), Collator(processor), seed=0
    )[0]  # fmt: skip
    model = build(run, folder).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = learn(model, batch, rate)
    assert losses[-1] < 0.8 * losses[0]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed <= trained and any("head" in name for name in changed)
    if method == "prompt":
        assert {f"imp.blocks.{i}.attention.prompts.vectors" for i in (0, 1)} <= changed


def test_a_merged_model_and_attribute_gates_are_tuned(digits_corpus, tmp_path):
    gated = dict(gate="attribute", conditional_linears=["qkv", "out", "up", "down"], router=None)
    run = digits_run(digits_corpus, **gated)
    for record, task in zip(run.evaluations, ("image_text", "film_text", "speech_text")):
        record.task = task
    full, dense = export_untrained(run, tmp_path / "full"), tmp_path / "dense"
    shutil.copytree(full, dense)
    merge(ImpForPreTraining.from_pretrained(full)).save_pretrained(dense)
    losses = []
    for folder in (full, dense):
        tuned = make(folder, prompt_length=3, **ALL)
        assert tuned.tasks[0].name == "image_text"
        model = build(tuned, folder)
        for name, parameter in model.named_parameters():  # the same prompts in both
            if name.endswith("prompts.vectors"):
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        (evaluator, *_) = build_evaluators(tuned, ImpProcessor.from_pretrained(folder), "test")
        batch = next(iter(evaluator.batches))
        vectors = model.eval().imp.encode(
            "vision", batch.inputs["vision"], condition=model.imp.condition("vision", "image_text")
        )  # fmt: skip
        losses.append(vectors.pooled_BD)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def test_names_are_scored_by_the_likelihood_head_where_the_evaluation_says_so(digits_corpus, tmp_path):
    run = digits_run(digits_corpus)
    run.tasks[4].objectives = [Likelihood(inputs=["vision"], candidates=["a", "b"], family="pictures")]
    run.evaluations[0].head = "likelihood"
    folder = export_untrained(run, tmp_path / "model")
    tuned = make(folder, method="full", **ALL)
    assert tuned.tasks[0].objectives[0].family == "pictures"
    processor = ImpProcessor.from_pretrained(folder)
    after = by_name(evaluate(build(tuned, folder), build_evaluators(tuned, processor, "test")))
    assert after["tuned/image/top1"] == after["zero_shot/image/top1"]


def without_names(run: RunConfig) -> None:
    run.evaluations[0].classes = None


def without_labels(run: RunConfig) -> None:
    run.evaluations[0].source.label = None


def without_a_view(run: RunConfig) -> None:
    run.evaluations[0].views.vision = None


def of_texts(run: RunConfig) -> None:
    run.evaluations[0].modality, run.evaluations[0].head = "text", "likelihood"


REFUSED = {
    "method": (dict(method="prompts"), "(?s)unknown method.*prompts.*did you mean prompt"),
    "no samples": (dict(fraction=0.0), "(?s)not a share of the samples.*0.*above 0, at most 1"),
    "more than all": (dict(fraction=1.5), "(?s)not a share of the samples.*1.5"),
    "an empty class": (dict(fraction=0.001), r"(?s)leaves class 0 \(zero\) without samples.*0.001 of \d+ samples.*--fraction 0"),
    "no rate": (dict(rate=0.0, **ALL), "(?s)the learning rate is no rate.*0.0.*above 0"),
    "no prompts": (dict(prompt_length=0, **ALL), "prompt tuning without prompts"),
    # text_max is 32
    "too many prompts": (dict(prompt_length=40, **ALL), "(?s)longer than the positions.*prompt_length = 40.*0 to 32"),
    "evaluation": (dict(evaluation="images", **ALL), "(?s)unknown evaluation.*images.*did you mean image"),
}  # fmt: skip


@pytest.mark.parametrize("asked, message", REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_one_clear_error(folder, asked, message):
    with pytest.raises(UserError, match=message):
        make(folder, **asked)


@pytest.mark.parametrize("change, message", [
    (without_names, "names no classes to tune to"), (without_labels, "has no labels to learn from"),
    (of_texts, "images, videos and audio"), (without_a_view, "(?s)lacks a view.*views.vision and views.text"),
])  # fmt: skip
def test_an_evaluation_that_cannot_be_tuned_to_is_refused(folder, change, message):
    source = RunConfig.load(folder)
    change(source)
    with pytest.raises(UserError, match=message):
        make(folder, source=source, **ALL)


def test_a_model_that_never_met_text_has_no_names_but_a_linear_probe(digits_corpus, folder, tmp_path):
    run = digits_run(digits_corpus)
    run.tasks = [run.tasks[4]]
    assert isinstance(run.tasks[0].objectives[0], Classification)
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["objectives"] = {"image_digit": config["objectives"]["image_digit"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    run.save(tmp_path / "model")
    with pytest.raises(UserError, match="(?s)never compared vision with text.*--method linear"):
        make(tmp_path / "model", **ALL)
    assert not make(tmp_path / "model", method="linear", **ALL).tasks[0].objectives[0].prompts


def test_a_pattern_that_nothing_matches_is_refused(folder):
    model = build(make(folder, **ALL), folder)
    with pytest.raises(UserError, match=r"(?s)train.trainable.*no such parameter.*imp.prompt.\*"):
        freeze_others(model, ["imp.prompt.*"])
