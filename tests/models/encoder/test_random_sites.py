"""What is random in the encoder: dropout and the noise of the routers, drawn from the samples' keys and from nothing else.

Shapes: B batch, L tokens of an example, D width.
"""

import pytest
import torch

from helpers.small_model import EXPERTS, audio_inputs, clip_inputs, small_model, text_inputs
from imp_ds.models.imp.encoder import layers
from imp_ds.randomness import sample_keys

RANDOM = dict(**EXPERTS, hidden_dropout=0.2, router_noise=1.0)
INPUTS = {"vision": clip_inputs(8, 1, 3, 2), "audio": audio_inputs(8), "text": text_inputs([9, 4, 2, 7, 8, 8, 1, 5], 9)}


def keys(step: int = 0, first: int = 0, count: int = 8) -> torch.Tensor:
    return sample_keys(0, step, first, count)


def rows(inputs: dict[str, torch.Tensor], first: int, count: int) -> dict[str, torch.Tensor]:
    return {name: tensor[first : first + count] for name, tensor in inputs.items()}


@pytest.mark.parametrize("changes", [dict(hidden_dropout=0.2), dict(**EXPERTS, router_noise=1.0, text_length=9)])
def test_only_training_with_keys_is_random(changes):
    model = small_model(**changes)
    for modality, inputs in INPUTS.items():
        calm_BD = model.eval().encode(modality, inputs).pooled_BD
        assert torch.equal(model.eval().encode(modality, inputs, keys()).pooled_BD, calm_BD)
        assert torch.equal(model.train().encode(modality, inputs).pooled_BD, calm_BD)
        drawn = [model.encode(modality, inputs, keys(step)).pooled_BD for step in (0, 0, 1)]
        assert torch.equal(drawn[0], drawn[1])
        assert (drawn[0] - calm_BD).abs().amax(1).min() > 1e-4  # every sample has its own, and feels it
        assert (drawn[0] - drawn[2]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_sample_draws_the_same_in_any_company(count):
    model = small_model(**RANDOM).train()
    for modality, inputs in INPUTS.items():
        full_BD = model.encode(modality, inputs, keys()).pooled_BD
        for first in range(0, 8, count):
            part_BD = model.encode(modality, rows(inputs, first, count), keys(first=first, count=count)).pooled_BD
            torch.testing.assert_close(part_BD, full_BD[first : first + count], rtol=1e-5, atol=1e-5)


def test_every_site_of_every_sample_has_a_key_of_its_own(monkeypatch):
    """3 modalities x (3 layers x 2 places of dropout + 2 routers) x 8 samples."""
    model, used = small_model(**RANDOM).train(), []

    def record(x_BLD, rate, key_B):
        used.append(key_B)
        return x_BLD

    monkeypatch.setattr(layers, "dropout", record)
    for block in model.blocks[1:]:
        block.feed_forward.router.register_forward_pre_hook(lambda module, args: used.append(args[1].key_B))
    for modality, inputs in INPUTS.items():
        model.encode(modality, inputs, keys())
    assert len(used) == 3 * (3 * 2 + 2)
    assert len(set(torch.cat(used).tolist())) == len(used) * 8


def test_checkpointing_draws_the_same_again():
    found = []
    for checkpointed in (False, True):
        model = small_model(**RANDOM).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        encoding = model.encode("text", INPUTS["text"], keys())
        (encoding.pooled_BD.square().sum() + model.router_loss(encoding)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and "blocks.2.feed_forward.router.weight" in found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-6)


def test_the_global_generator_is_neither_read_nor_moved():
    model = small_model(**RANDOM).train()
    state = torch.get_rng_state()
    first_BD = model.encode("audio", INPUTS["audio"], keys()).pooled_BD
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(model.encode("audio", INPUTS["audio"], keys()).pooled_BD, first_BD)
