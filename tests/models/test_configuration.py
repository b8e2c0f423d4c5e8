"""ImpConfig: published sizes, placements of the experts, and what it refuses."""

import json

import pytest
import torch
from transformers import AutoConfig

from imp_ds import ImpConfig, ImpModel, ModelSettings
from imp_ds.errors import UserError
from imp_ds.objectives import task_entry


def encoder_parameters(config: ImpConfig) -> int:
    """Parameters of the blocks and the last norm, counted on the model itself (which takes no memory on meta)."""
    with torch.device("meta"):
        model = ImpModel(config)
    return sum(p.numel() for p in (*model.blocks.parameters(), *model.norm.parameters()))


# 4 d^2 of attention and 2 d f of feed-forward in each layer, d for each of two norms; 2 d for the last norm, with bias
# tiny: 4 (4 * 128^2 + 2 * 128 * 512 + 2 * 128) + 256 = 787,712
# B: 12 (4 * 768^2 + 2 * 768 * 3072 + 2 * 768) + 1536 = 84,954,624: the release's own notebook prints 84.954624M
# S: 12 (4 * 384^2 + 2 * 384 * 1536 + 768) + 768 = 21,243,648; M and L: d 1024, f 4096, 12 or 24 layers of 12,584,960, + 2048
@pytest.mark.parametrize(
    "size, parameters", [("tiny", 787_712), ("S", 21_243_648), ("B", 84_954_624), ("M", 151_021_568), ("L", 302_041_088)]
)
def test_published_sizes(size, parameters):
    assert encoder_parameters(ImpConfig.from_size(size)) == parameters


def test_published_mixture_sizes():
    # each of the last 6 layers has 16 feed-forwards for one and a router of 16 x 768; all 12 have QK-norm, two vectors of 64
    expected = 84_954_624 + 6 * (15 * 2 * 768 * 3072 + 16 * 768) + 12 * 2 * 64
    assert encoder_parameters(ImpConfig.from_size("B", num_experts=16)) == expected
    assert expected / 1e6 == pytest.approx(510, abs=1)  # reference: about 510 M


@pytest.mark.parametrize(
    "moe_layers, indices",
    [
        ("last:6", [6, 7, 8, 9, 10, 11]),
        ("last:1", [11]),
        ("last:12", list(range(12))),
        ("every:2", [1, 3, 5, 7, 9, 11]),
        ("every:5", [4, 9]),
        ("every:1", list(range(12))),
        ([3, 0, 3], [0, 3]),
        ((11,), [11]),
    ],
)
def test_placements(moe_layers, indices):
    config = ImpConfig(num_experts=4, moe_layers=moe_layers)
    assert config.moe_layer_indices == indices
    assert ImpConfig(num_experts=0, moe_layers=moe_layers).moe_layer_indices == []


def test_the_placement_is_where_the_experts_are():
    config = ImpConfig.from_size("tiny", num_experts=2, moe_layers=[0, 2])
    with torch.device("meta"):
        model = ImpModel(config)
    assert [hasattr(block.feed_forward, "experts") for block in model.blocks] == [True, False, True, False]
    assert [block.is_moe for block in model.blocks] == [True, False, True, False]


@pytest.mark.parametrize("moe_layers", [
    "last:0", "last:13", "every:", "first:0", "first:13", "middle:2", "last:-1", "last:2.5", "", [12], [-1], []
])  # fmt: skip
def test_placements_that_name_no_layer_are_refused(moe_layers):
    with pytest.raises(UserError, match="moe_layers"):
        ImpConfig(num_experts=4, moe_layers=moe_layers)


def test_qk_norm_follows_the_experts_unless_it_is_said():
    assert ImpConfig(num_experts=4).qk_norm and not ImpConfig().qk_norm
    assert not ImpConfig(num_experts=4, qk_norm=False).qk_norm and ImpConfig(qk_norm=True).qk_norm


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(hidden_size=100, num_attention_heads=12), "not divisible by num_attention_heads"),
        (dict(expert_activation="relu"), "(?s)expert_activation.*gelu, geglu"),
        (dict(pairs=[("vision", "smell")]), "(?s)a modality that the model does not have.*smell.*vision, audio, text"),
        (dict(vision_max=(64, 500, 512)), "vision_max is not a multiple of vision_patch"),
        (dict(audio_max=(1000, 128)), "audio_max is not a multiple of audio_patch"),
    ],
)
def test_contradictions_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        ImpConfig(**wrong)


def test_an_unknown_size_is_named():
    with pytest.raises(UserError, match="(?s)unknown model size.*XXS.*tiny, S, B, M, L"):
        ImpConfig.from_size("XXS")


def test_survives_being_saved(tmp_path):
    objectives = {"a": task_entry([{"kind": "contrastive", "pairs": [["vision", "text"]]}], "mean")}
    config = ImpConfig.from_size(
        "tiny", num_experts=4, moe_layers=[1, 3], qk_norm=False, group_examples=8, pairs=[("audio", "text")],
        objectives=objectives,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is ImpConfig
    said, wanted = (json.loads(c.to_json_string(use_diff=False)) for c in (loaded, config))
    del said["_name_or_path"], wanted["_name_or_path"]  # where it came from, the one thing that differs
    assert said == wanted
    assert loaded.moe_layer_indices == [1, 3] and loaded.qk_norm is False and loaded.objectives == objectives


def test_an_unknown_router_is_refused_with_a_suggestion_also_where_there_are_no_experts():
    for experts in (0, 4):
        with pytest.raises(UserError, match="(?s)unknown router.*top_kk.*did you mean top_k"):
            ImpConfig(router="top_kk", num_experts=experts)
    with pytest.raises(ValueError, match="(?s)unknown router.*expert_choise.*did you mean expert_choice"):
        ModelSettings(router="expert_choise")


def test_options_of_a_router_are_its_own():
    config = ImpConfig(router="top_k_balanced", num_experts=4, router_options={"bias_rate": 0.5})
    assert config.options_of_router == {
        "capacity_factor": 1.0, "experts_per_token": 2, "drop_tokens": True, "bias_rate": 0.5
    }  # fmt: skip
    assert ImpConfig(num_experts=4).options_of_router == {"capacity_factor": 1.0}
    for options, message in (({"bias_rat": 0.5}, "bias_rat.*did you mean bias_rate"), ({"bias_rate": -1}, "bias_rate"),
                             ({"drop_tokens": False}, "field of its own")):  # fmt: skip
        with pytest.raises(UserError, match=f"(?s){message}"):
            ImpConfig(router="top_k_balanced", num_experts=4, router_options=options)
