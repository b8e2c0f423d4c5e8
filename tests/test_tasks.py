"""The Task record: what it refuses, and the Batch that carries its samples."""

import pytest
import torch
from pydantic import ValidationError

from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Contrastive
from imp_ds.tasks import Batch, Source, Task

SOURCE = Source(path="speech", audio="file", text="caption", label="digit")
VIEWS = Views(audio=AudioView(seconds=1.0), text=TextView(length=8))
NCE, DIGIT = Contrastive(pairs=[("audio", "text")]), Classification(modality="audio", num_classes=10)


def task(**changes) -> Task:
    fields = {"name": "speech_text", "source": SOURCE, "views": VIEWS, "objectives": [NCE], "batch_size": 4}
    return Task(**{**fields, **changes})


def test_defaults_are_the_references():
    plain = task()
    assert (plain.interval, plain.weight, plain.reduction) == (1, 1.0, "sum")
    assert (NCE.positives, NCE.weight, DIGIT.loss, DIGIT.label_smoothing) == ("diagonal", 1.0, "softmax", 0.0)
    # the released image: 256 x 256, nothing dropped; the released audio: 8.192 s; the released caption: 16 tokens
    assert (VisionView().frames, VisionView().height, VisionView().width, VisionView().drop_rate) == (1, 256, 256, 0.0)
    assert (AudioView().seconds, TextView().length) == (8.192, 16)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objectives": [Contrastive(pairs=[("audio", "vision")])]}, "uses vision, but views.vision is not set"),
        ({"views": Views(text=TextView())}, "uses audio, but views.audio is not set"),
        ({"source": Source(path="speech", audio="file")}, "uses text, but source.text names no column"),
        ({"source": Source(path="s", audio="a", text="t"), "objectives": [DIGIT]}, "source.label names no column"),
        (
            {"source": Source(path="s", audio="a", text="t"), "objectives": [NCE.model_copy(update={"positives": "equal"})]},
            "source.label names no column",
        ),
        ({"objectives": [{"kind": "contrastive", "pairs": [("text", "text")]}]}, "needs two different modalities"),
        ({"objectives": [{"kind": "contrastve"}]}, "did you mean contrastive"),
        ({"objectives": []}, "at least 1 item"),
        ({"name": "Speech Text"}, "match pattern"),
        ({"name": "1st"}, "match pattern"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"interval": 0}, "greater than or equal to 1"),
        ({"weight": -1.0}, "greater than or equal to 0"),
        ({"reduction": "max"}, "'sum' or 'mean'"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_train_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        task(**changes)


@pytest.mark.parametrize("wrong", [dict(drop_rate=1.0), dict(drop_rate=-0.1), dict(frames=0), dict(height=0), dict(depth=3)])
def test_views_are_checked(wrong):
    with pytest.raises(ValidationError):
        VisionView(**wrong)


def test_a_later_change_is_checked_too():
    changed = task()
    with pytest.raises(ValidationError):
        changed.batch_size = 0


def test_an_objective_is_given_by_its_kind():
    read = Task.model_validate({**task().model_dump(), "objectives": [DIGIT.model_dump(), NCE.model_dump()]})
    assert [type(objective) for objective in read.objectives] == [Classification, Contrastive]
    assert Task.model_validate_json(read.model_dump_json()) == read
    with pytest.raises(ValidationError, match="unknown kind of objective: 'sorting'; allowed: .*contrastive, .*--import MODULE"):
        task(objectives=[{"kind": "sorting"}])


def test_views_are_named_in_a_fixed_order():
    assert Views(text=TextView(), vision=VisionView()).names() == ["vision", "text"]
    assert Views().names() == []


def test_a_batch_maps_every_tensor():
    inputs = {"audio": {"a": torch.ones(2), "b": torch.ones(3)}, "text": {"c": torch.ones(1)}}
    batch = Batch("speech_text", inputs, {"label": torch.ones(2)}, torch.ones(2, dtype=torch.int64))
    twice = batch.map(lambda t: 2 * t)
    tensors = [t for group in (*twice.inputs.values(), twice.targets) for t in group.values()] + [twice.key_B]
    assert twice.task == "speech_text" and len(tensors) == 5 and all((t == 2).all() for t in tensors)
    assert (batch.inputs["audio"]["a"] == 1).all()  # the batch itself is as it was
    assert Batch("speech_text", inputs, {}).map(lambda t: 2 * t).key_B is None
    moved = batch.to("meta")
    assert moved.key_B.device.type == "meta"
    assert all(t.device.type == "meta" for group in (*moved.inputs.values(), moved.targets) for t in group.values())


def test_a_batch_carries_nothing_else():
    with pytest.raises(AttributeError):
        Batch("speech_text", {}, {}).extra = 1
