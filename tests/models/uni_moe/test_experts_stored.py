"""Experts of a UniMoeForConditionalGeneration: fresh ones, and those that a folder gives back."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.language_models import SIZES, SPARSE
from imp_ds.models.uni_moe import UniMoeConfig, UniMoeForConditionalGeneration
from imp_ds.models.uni_moe.experts import expert_feed_forwards

BASES = {"llama": {}, "mixtral": SPARSE["mixtral"], "qwen3_moe": SPARSE["qwen3_moe"] | {"norm_topk_prob": True}}


def fresh(kind: str = "llama") -> UniMoeForConditionalGeneration:
    text = dict(model_type=kind, **SIZES, **BASES[kind])
    return UniMoeForConditionalGeneration(UniMoeConfig(text_config=text, num_experts=4, modality_maps=True))


def test_fresh_experts_are_filled():
    """Matrices of experts with a deviation of 1 / sqrt(fan in), routers with the language model's, maps with the identity."""
    for mixture in expert_feed_forwards(fresh().language_model):
        experts = mixture.moe.experts
        assert experts.w1.std().item() == pytest.approx(16**-0.5, rel=0.1)
        assert experts.w2.std().item() == pytest.approx(24**-0.5, rel=0.1)
        assert 0.2 < mixture.moe.router.weight.std() < 0.4
        assert torch.equal(mixture.maps.weight, torch.eye(16).expand(4, 16, 16))


@pytest.mark.parametrize("kind", BASES)
def test_saved_and_loaded_bit_by_bit(kind, tmp_path):
    model = fresh(kind)
    for mixture in expert_feed_forwards(model.language_model):
        mixture.maps.weight.data.normal_()
    model.save_pretrained(tmp_path)
    loaded = UniMoeForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for (name, one), other in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(one, other), name


def test_maps_that_a_folder_lacks_are_the_identity(tmp_path):
    fresh().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    left = {name: tensor for name, tensor in stored.items() if "maps" not in name}
    save_file(left, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = UniMoeForConditionalGeneration.from_pretrained(tmp_path)
    for mixture in expert_feed_forwards(loaded.language_model):
        assert torch.equal(mixture.maps.weight, torch.eye(16).expand(4, 16, 16))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in left.items())
