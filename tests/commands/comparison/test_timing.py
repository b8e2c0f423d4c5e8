"""Timing: calls in turns, the means that are reported, and merged models that must answer as those with experts do."""

import pytest
import torch

from imp_ds import ImpConfig, ImpForPreTraining
from imp_ds.commands.comparison import timing
from imp_ds.errors import UserError
from imp_ds.families.imp.merging import merge
from imp_ds.models.imp.configuration_imp import CONSTANT_GATES
from imp_ds.objectives import task_entry
from imp_ds.recipes import get_recipe
from imp_ds.tasks import Batch

SHAPE = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=20, common_dim=8, num_experts=4,
    moe_layers="all", conditional_linears=["qkv", "out", "up", "down"],
)  # fmt: skip


@pytest.fixture
def batches():
    ids_BL = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    return {"name": Batch("name", {"text": {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}}, {})}


@pytest.fixture(params=CONSTANT_GATES)
def model(request):
    torch.manual_seed(0)
    spec = {"kind": "classification", "modality": "text", "num_classes": 4}
    made = ImpForPreTraining(ImpConfig(**SHAPE, gate=request.param, objectives={"name": task_entry([spec])}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made.eval()


def test_a_merged_model_is_measured_and_held_to_the_one_with_experts(model, batches):
    merged = merge(model)
    gate = model.config.gate
    found = timing.measure_model(gate, merged, model, batches)
    assert found["parameters"] == sum(p.numel() for p in merged.parameters())
    assert 0 <= found["merged_difference"] <= timing.EQUAL
    with torch.no_grad():
        merged.imp.blocks[1].feed_forward.down.copies[0].weight[0, 0] += 0.1
    with pytest.raises(UserError, match=f"merged {gate} model does not answer"):
        timing.measure_model(gate, merged, model, batches)
    assert timing.measure_model("dense", model, None, batches)["merged_difference"] is None


def test_an_answer_that_is_not_a_number_is_no_equality(model, batches):
    merged = merge(model)
    with torch.no_grad():
        merged.imp.blocks[0].feed_forward.down.copies[0].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="differ by nan"):
        timing.measure_model(model.config.gate, merged, model, batches)


def test_all_calls_take_turns_and_the_first_rounds_do_not_count(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    taken = {("a",): iter([90.0, 80.0, 1.0, 2.0, 9.0]), ("b",): iter([70.0, 60.0, 5.0, 3.0, 4.0])}

    def call(key):
        order.append(key[0])
        clock[0] += next(taken[key])

    calls = {key: lambda key=key: call(key) for key in taken}
    reported = []
    found = timing.medians_in_turns(calls, 3, torch.device("cpu"), lambda *how_far: reported.append(how_far))
    assert order == ["a", "b"] * 5 and timing.WARM_UP == 2
    assert found == {("a",): 2.0, ("b",): 4.0}  # of 1, 2, 9 and of 5, 3, 4
    assert reported[-1] == ("timing", 5, 5)


def test_a_mean_step_has_the_tasks_by_their_shares():
    run = get_recipe("digits_debug")
    run.tasks = run.tasks[:2]
    run.tasks[0].interval = 3  # one step of the first for three of the second
    train = {run.tasks[0].name: 8.0, run.tasks[1].name: 4.0}
    encode = {run.tasks[0].name: 1.0, run.tasks[1].name: 2.0}
    found = timing.summary(run, train, encode)
    assert (found["step_s"], found["encode_s"]) == (pytest.approx(0.25 * 8 + 0.75 * 4), 1.5)
    assert found["train_s"] == train and found["inference_s"] == encode
