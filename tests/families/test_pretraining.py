"""ImpForPreTraining: several objectives on one batch, the routers' loss, and tasks that leave each other alone."""

from contextlib import nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from imp_ds import ImpConfig, ImpForPreTraining
from imp_ds.errors import UserError
from imp_ds.families.imp.pretraining import TaskObjectives
from imp_ds.modalities.positions import grid_positions
from imp_ds.objectives import Classification, Contrastive, MaskedLanguage, task_entry
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch

SMALL = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, audio_patch=(2, 2), audio_max=(8, 8),
    vision_patch=(2, 4, 4), vision_max=(4, 8, 8), vocab_size=20, text_max=16, common_dim=12, num_experts=2, moe_layers="last:1",
)  # fmt: skip


def spec(objective) -> dict:
    return objective.model_dump(mode="json")


NCE = spec(Contrastive(pairs=[("audio", "text")], weight=0.5))
DIGIT = spec(Classification(modality="audio", num_classes=3, weight=2.0))
SPEAKER = spec(Classification(modality="audio", num_classes=3, loss="sigmoid", weight=0.0))
WORD = spec(Classification(modality="text", num_classes=3))
HIDDEN = spec(MaskedLanguage())


def build(reduction: str = "sum", *specs: dict) -> ImpForPreTraining:
    torch.manual_seed(0)
    tasks = {"speech": task_entry(list(specs), reduction), "digits": task_entry([DIGIT])}
    return ImpForPreTraining(ImpConfig(**SMALL, objectives=tasks))


def speech(task: str = "speech", **more) -> Batch:
    generator = torch.Generator().manual_seed(1)
    positions = torch.from_numpy(grid_positions(2, 2)).expand(4, -1, -1)
    audio = {"input_features": torch.randn(4, 4, 4, generator=generator), "feature_positions": positions}
    text = {
        "input_ids": torch.randint(1, 20, (4, 3), generator=generator),
        "attention_mask": torch.ones(4, 3, dtype=torch.long),
    }
    return Batch(task, {"audio": audio, "text": text}, {"label": torch.tensor([0, 1, 2, 1])})


@pytest.mark.parametrize("reduction, divisor", [("sum", 1), ("mean", 2)])
def test_objectives_are_weighted_and_combined(reduction, divisor):
    model = build(reduction, NCE, DIGIT)
    loss, metrics, reports = model(speech())
    parts = 0.5 * metrics["loss/contrastive"] + 2.0 * metrics["loss/classification"]
    torch.testing.assert_close(loss, parts / divisor + metrics["loss/router"])
    assert metrics["loss/router"] > 0 and {m: len(found) for m, found in reports.items()} == {"audio": 1, "text": 1}
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())
    assert all(value.shape == () for value in metrics.values())


def test_gradients_add_up_as_the_losses_do():
    """d(0.5 nce + 2 ce + z) = 0.5 d nce + 2 d ce + d z on a weight that all of them reach."""
    model, batch = build("sum", NCE, DIGIT), speech()
    weight = model.imp.blocks[0].attention.qkv.weight
    encodings = {modality: model.imp.encode(modality, inputs) for modality, inputs in batch.inputs.items()}
    nce, ce = (part(model.imp, encodings, batch.targets)[0] for part in model.objectives["speech"].parts)
    losses = (nce, ce, model.imp.router_loss(*encodings.values()))
    parts = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    (full,) = torch.autograd.grad(model(batch)[0], weight)
    assert all(part.abs().max() > 0 for part in parts)
    torch.testing.assert_close(full, 0.5 * parts[0] + 2.0 * parts[1] + parts[2], rtol=1e-4, atol=1e-6)


def test_two_objectives_of_one_kind_are_distinguished():
    metrics = build("sum", DIGIT, NCE, WORD)(speech())[1]
    names = {name for name in metrics if name.startswith("loss/")}
    assert names == {"loss/classification_0", "loss/contrastive", "loss/classification_2", "loss/router"}
    assert metrics["loss/classification_0"] != metrics["loss/classification_2"]


def test_an_objective_of_weight_zero_teaches_nothing():
    model = build("sum", SPEAKER, WORD)
    model(speech())[0].backward()
    assert model.objectives["speech"].parts[0].head.weight.grad.abs().max() == 0
    assert model.objectives["speech"].parts[1].head.weight.grad.abs().max() > 0


def test_a_task_leaves_the_others_heads_alone():
    model = build("sum", NCE)
    batch = speech("digits")
    model(Batch("digits", {"audio": batch.inputs["audio"]}, batch.targets))[0].backward()
    assert model.objectives["digits"].parts[0].head.weight.grad is not None
    assert all(p.grad is None for p in model.objectives["speech"].parameters())
    assert all(p.grad is None for p in model.imp.embeddings["text"].parameters())


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="(?s)not built for this task.*chess.*speech, digits"):
        build("sum", NCE)(speech("chess"))


def test_a_model_without_tasks_is_a_model():
    assert len(ImpForPreTraining(ImpConfig(**SMALL)).objectives) == 0


def test_the_mean_is_over_objectives_not_over_weights():
    class Fixed(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, model, encodings, targets):
            return torch.tensor(self.value), {}

    both = TaskObjectives([NCE, DIGIT], "mean", ImpConfig(**SMALL))
    both.parts = torch.nn.ModuleList([Fixed(3.0), Fixed(5.0)])
    assert both(None, {}, {})[0].item() == pytest.approx((0.5 * 3 + 2 * 5) / 2)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device: reading a value back, shapes that depend on values, and copies from
    the host. Tensors on the meta device stand for those on a GPU: they have shapes and no values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal"), name
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        assert all(tensor.device.type == "meta" for tensor in tensors), f"{name} on a tensor of the host"
        return func(*args, **(kwargs or {}))


class NoLists(TorchFunctionMode):
    """Refuses tensors made of Python numbers: on a GPU that is a copy from the host which waits. Torch hides it from the mode
    above."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("positives", ["diagonal", "equal"])
def test_a_step_never_waits_for_the_device(positives, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it knows no meta device
    nce = spec(Contrastive(pairs=[("audio", "text"), ("vision", "text")], positives=positives))
    model, batch = build("sum", nce, DIGIT, WORD, HIDDEN).to("meta"), speech()
    batch.targets["token_ids"] = torch.tensor([[-100, 5, -100]] * 4)
    pixels = torch.zeros(4, 4, 96, dtype=torch.uint8)
    places = torch.from_numpy(grid_positions(1, 2, 2)).expand(4, -1, -1)
    batch.inputs["vision"] = {"pixel_values": pixels, "pixel_positions": places}
    batch.key_B = sample_keys(0, 0, 0, 4)
    batch = batch.to("meta")
    for block in model.imp.blocks:
        block.dropout_rate = 0.1
    model.imp.blocks[1].feed_forward.router.noise = 1.0
    with NoWaiting(), NoLists():
        loss, _, _ = model(batch)
        loss.backward()
    assert all(p.grad is not None for p in model.imp.blocks.parameters())
