"""Interference in a model: gradients against plain backward passes, constructed tasks, and what is drawn and logged of it."""

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imp_ds import ImpConfig, ImpForPreTraining
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.errors import UserError
from imp_ds.evaluation.interference import Interference, interference
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.objectives import Classification, task_entry
from imp_ds.tasks import Batch, Source, Task
from imp_ds.train.interference import (
    PICTURE,
    GradientRounds,
    InterferenceProbe,
    chosen_weights,
    interference_scalars,
    record_interference,
)
from imp_ds.train.recording.trackers.tensorboard import TensorBoard

SHAPE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, vocab_size=20, common_dim=8)
DOWN = "imp.blocks.2.feed_forward.down.weight"


def make_model(weights: dict[str, float], **shape) -> ImpForPreTraining:
    """A classification of texts for each task, all with the same head; `weights` are those of their losses."""
    spec = {"kind": "classification", "modality": "text", "num_classes": 4}
    objectives = {task: task_entry([spec]) for task in weights}
    torch.manual_seed(0)
    model = ImpForPreTraining(ImpConfig(**{**SHAPE, **shape}, objectives=objectives))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        first, *others = model.objectives.values()
        for objective in others:
            objective.load_state_dict(first.state_dict())
    for task, weight in weights.items():
        model.objectives[task].weights = [weight]  # also below 0, which no record may have: a loss that pulls the other way
    return model


def text_batch(task: str, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    ids_BL = torch.randint(1, 20, (4, 6), generator=draw)
    inputs = {"text": {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}}
    return Batch(task, inputs, {"label": torch.randint(0, 4, (4,), generator=draw)})


def rounds_of(model: ImpForPreTraining, samples: int, names: list[str], **options) -> GradientRounds:
    tasks = list(model.objectives)
    return GradientRounds(model, lambda task, number: text_batch(tasks[task], number), len(tasks), samples, names, **options)


def test_gradients_are_those_of_training_and_leave_it_alone():
    model = make_model({"a": 1.0, "b": 2.0}, num_experts=2, moe_layers=[2])
    names = ["imp.blocks.0.feed_forward.down.weight", "imp.blocks.2.feed_forward.experts.w2"]
    found = list(rounds_of(model, 3, names))
    assert all(parameter.grad is None for parameter in model.parameters())
    for number, gradients in enumerate(found):
        assert list(gradients) == names
        for place, task in enumerate("ab"):
            model.zero_grad()
            model(text_batch(task, number))[0].backward()
            for name in names:
                assert torch.equal(gradients[name][place], model.get_parameter(name).grad.flatten())


def test_gradients_that_do_not_fit_are_computed_again():
    model, reported = make_model({"a": 1.0, "b": 1.0}), []
    kept, again = rounds_of(model, 3, [DOWN]), rounds_of(model, 3, [DOWN], cache_mb=0, progress=lambda *p: reported.append(p))
    # a round: 2 tasks x 24 x 16 numbers of 4 bytes; the sums take as much
    assert (kept.held_bytes, again.held_bytes) == (4 * 3072, 2 * 3072)
    first, second = list(kept), list(kept)
    assert all(a is b for a, b in zip(first, second, strict=True))
    for _ in range(2):
        assert all(torch.equal(a[DOWN], b[DOWN]) for a, b in zip(first, again, strict=True))
    assert reported == [("gradients", done, 12) for done in range(1, 13)]


def test_tasks_with_the_same_and_the_opposite_loss():
    model = make_model({"task": 1.0, "same": 3.0, "opposite": -1.0})
    found = interference(model.objectives, rounds_of(model, 5, [DOWN]))[DOWN].matrix_KK
    expected = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_task_that_does_not_use_a_weight_is_orthogonal():
    model = make_model({"a": 1.0, "b": 1.0})
    name = next(name for name, _ in model.objectives.named_parameters() if name.startswith("a.") and name.endswith("weight"))
    found = interference("ab", rounds_of(model, 3, [f"objectives.{name}"]))[f"objectives.{name}"].matrix_KK
    assert found[0].tolist() == pytest.approx([1, 0]) and not found[1].isfinite().any()


@pytest.mark.parametrize("shape, patterns, expected", [
    (dict(num_hidden_layers=12), [], [f"imp.blocks.{i}.feed_forward.down.weight" for i in (3, 7, 11)]),
    (dict(num_hidden_layers=1), [], ["imp.blocks.0.feed_forward.down.weight"]),
    (dict(num_hidden_layers=4, num_experts=2, moe_layers="every:2"), [],
     ["imp.blocks.0.feed_forward.down.weight", "imp.blocks.1.feed_forward.experts.w2", "imp.blocks.3.feed_forward.experts.w2"]),
    ({}, ["imp.blocks.*.attention.out.weight"], [f"imp.blocks.{i}.attention.out.weight" for i in range(3)]),
    ({}, [DOWN, "*.2.feed_forward.*"], ["imp.blocks.2.feed_forward.up.weight", DOWN]),
])  # fmt: skip
def test_weights_are_chosen(shape, patterns, expected):
    assert chosen_weights(ImpForPreTraining(ImpConfig(**{**SHAPE, **shape})), patterns) == expected


def make_run(*tasks: str) -> RunConfig:
    source = Source(path="texts", text="text", label="label")
    records = [
        Task(name=name, source=source, views=Views(text=TextView(length=6)), batch_size=4,
             objectives=[Classification(modality="text", num_classes=4)])
        for name in tasks
    ]  # fmt: skip
    return RunConfig(name="texts", tasks=records, train=TrainSettings(steps=1), model=ModelSettings(), data=DataSettings())


@pytest.mark.parametrize("tasks, options, word", [
    (["a"], {}, "a alone"),
    (["a", "b"], {"samples": 1}, "got:     1"),
    (["a", "b"], {"weights": ["imp.blocks.7.*"]}, "the model has no such weight"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_at_once(tasks, options, word):
    with pytest.raises(UserError, match=word):
        InterferenceProbe(make_run(*tasks), make_model(dict.fromkeys(tasks, 1.0)), {}, None, **options)


def test_weights_that_zero_3_has_spread_are_refused():
    model = make_model({"a": 1.0, "b": 1.0})
    model.get_parameter(DOWN).ds_id = 0
    with pytest.raises(UserError, match="ZeRO 3"):
        InterferenceProbe(make_run("a", "b"), model, {}, None)


def test_scalars_and_picture_reach_tensorboard(tmp_path):
    found = {DOWN: Interference(("a", "b"), torch.tensor([[1.0, -0.5], [0.25, 1.0]]), torch.tensor([0, 0]))}
    scalars = interference_scalars(found)
    tag = f"interference/{DOWN}"
    assert scalars == {f"{tag}/b_on_a": -0.5, f"{tag}/a_on_b": 0.25, f"{tag}/between_tasks": -0.125}
    board = TensorBoard(tmp_path / "tensorboard")
    record_interference(board, tmp_path, 30, found)
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {name: (events.Scalars(name)[0].step, events.Scalars(name)[0].value) for name in scalars} == {
        name: (30, value) for name, value in scalars.items()
    }
    with Image.open(tmp_path / PICTURE) as picture:
        assert (events.Images("interference")[0].width, events.Images("interference")[0].height) == picture.size
