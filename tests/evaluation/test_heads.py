"""Classification heads on held-out samples: loss and accuracy by hand, windows of a recording, labels that fit no class."""

import math

import pytest
import torch

from helpers.animals import task
from imp_ds import ImpForPreTraining
from imp_ds.evaluation import by_name, evaluate
from imp_ds.evaluation.task_heads import heads
from imp_ds.families.imp.evaluation.heads import HeadEvaluator, held_out_loss
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.objectives import Classification
from imp_ds.tasks import Batch, Task

NAMES = ["dog", "cat", "cow"]


def model_of(task: Task) -> ImpForPreTraining:
    torch.manual_seed(0)
    settings = ModelSettings(
        size="tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, text_max=8, common_dim=16,
        vision_patch=(1, 4, 4), vision_max=(1, 8, 8),
    )  # fmt: skip
    return ImpForPreTraining(settings.to_config(20, [task])).eval()


def batch(rows: list[int], valid: list[bool]) -> Batch:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (6, 4, 48), dtype=torch.uint8, generator=draw)[: len(rows)]
    inputs = {"vision": dict(pixel_values=pixels, pixel_positions=torch.rand(6, 4, 3, generator=draw)[: len(rows)])}
    return Batch("any", inputs, {"index": torch.tensor(rows), "valid": torch.tensor(valid)})


def test_loss_and_accuracy_equal_a_direct_computation_and_label_smoothing_is_not_in_the_loss():
    given = task(names=NAMES, label_smoothing=0.3)
    model = model_of(given)
    # row 1 has two windows; row 2 cannot be read; row 3 has a label that is no class; the last entry only fills up
    entries, labels = batch([0, 1, 1, 3, 4, 4], [True] * 5 + [False]), torch.tensor([2, 0, -1, 7, 1])
    results = by_name(evaluate(model, [HeadEvaluator(given, 0, [([entries], labels)], "animal")]))
    with torch.no_grad():
        pooled = model.imp.encode("vision", entries.inputs["vision"]).pooled_BD
        p = model.objectives["animal"].parts[0].head(pooled).double().softmax(1)
    p = torch.stack([p[0], (p[1] + p[2]) / 2, p[4]])
    right = p[torch.arange(3), torch.tensor([2, 0, 1])]
    assert results["heads/animal/loss"] == pytest.approx(-right.log().mean().item(), abs=1e-5)
    assert results["heads/animal/top1"] == pytest.approx((p.argmax(1) == torch.tensor([2, 0, 1])).double().mean().item())
    assert results["left_out/animal"] == 2 and set(results) == {"left_out/animal", "heads/animal/loss", "heads/animal/top1"}


def test_the_loss_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    # softmax: -(ln 0.5 + ln 0.8) / 2
    assert held_out_loss(p, torch.tensor([0, 1]), "softmax") == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)
    # sigmoid: of each row the mean over 3 classes of the right one's -ln p and the others' -ln(1 - p)
    first = -(math.log(0.5) + 2 * math.log(0.75)) / 3
    second = -(math.log(0.8) + 2 * math.log(0.9)) / 3
    assert held_out_loss(p, torch.tensor([0, 1]), "sigmoid") == pytest.approx((first + second) / 2)


def test_several_heads_of_a_task_have_names_of_their_own():
    objectives = [Classification(modality="vision", num_classes=3), Classification(modality="vision", num_classes=4)]
    found = heads(task().model_copy(update={"objectives": objectives}))
    assert [(place, name) for place, _, name in found] == [(0, "animal_vision_0"), (1, "animal_vision_1")]
    assert [name for _, _, name in heads(task())] == ["animal"]


def test_classes_are_predicted_by_name_the_likeliest_first():
    model = model_of(task(names=NAMES))
    inputs = batch([0, 1], [True, True]).inputs["vision"]
    chances = model.answer(**inputs)
    best = [dict(sorted(zip(NAMES, row.tolist()), key=lambda item: -item[1])[:2]) for row in chances]
    found = model.predict(**inputs, top=2)
    assert found == best and [list(row) for row in found] == [list(row) for row in best]
    torch.testing.assert_close(chances.sum(1), torch.ones(2))
    assert model.config.id2label == dict(enumerate(NAMES)) and model.config.label2id["cow"] == 2
    assert list(model_of(task()).predict(**inputs)[0]) and set(model_of(task()).predict(**inputs)[0]) == {"0", "1", "2"}
    assert torch.all(model_of(task(loss="sigmoid")).answer(**inputs) != model_of(task()).answer(**inputs))
