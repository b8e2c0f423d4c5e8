"""What DeepSpeed 0.19.8 needs to find on an expert-parallel layer, pinned: tags, attributes, placements.

The engine, the ZeRO optimizers and the checkpoint converter read these by name and say nothing when they are absent.
"""

import copy
import importlib.metadata

import pytest
import torch
from deepspeed.checkpoint.autoep_affine import validate_autoep_placement_descriptor
from deepspeed.checkpoint.constants import DS_AUTOEP_UC_META
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer
from deepspeed.utils import groups

from imp_ds import ImpConfig, ImpModel
from imp_ds.moe.grouping import Grouping
from imp_ds.moe.layer import MoELayer
from imp_ds.parallel.expert_parallel import AllToAllDispatcher, ExpertParallelMoE, spread_experts

EXPERTS, EP_SIZE = 4, 2


def make_layer(ep_rank: int = 1, activation: str = "geglu") -> tuple[MoELayer, ExpertParallelMoE]:
    torch.manual_seed(0)
    full = MoELayer(8, 12, EXPERTS, activation=activation, group_tokens=64, group_examples=2)
    for parameter in full.parameters():
        parameter.data.normal_()
    return full, ExpertParallelMoE(copy.deepcopy(full), EP_SIZE, ep_rank)


def test_written_for_the_pinned_version():
    assert importlib.metadata.version("deepspeed") == "0.19.8", "check every tag of this file against the new version"


def test_deepspeed_recognises_the_layer():
    """By its class; a layer of any other class would train wrongly in silence."""
    full, layer = make_layer()
    assert isinstance(layer, AutoEPMoELayer) and isinstance(layer, MoELayer)
    assert not isinstance(full, AutoEPMoELayer)
    assert type(layer).forward is MoELayer.forward  # what computes is ours, not theirs


def test_deepspeed_splits_the_experts_off_for_the_optimizer():
    _, layer = make_layer()
    parts = split_params_into_different_moe_groups_for_optimizer([{"params": list(layer.parameters()), "name": "kernels"}])
    assert [bool(part.get("moe")) for part in parts] == [False, True]
    assert parts[0]["params"] == [layer.router.weight]
    assert {id(p) for p in parts[1]["params"]} == {id(p) for p in layer.experts.parameters()}


def test_attributes_of_the_layer():
    _, layer = make_layer()
    expected = {
        "num_experts": 4, "num_local_experts": 2, "ep_size": 2, "ep_rank": 1, "ep_group_name": "ep_size_2", "ep_group": None,
        "folding_group_handles": None, "tp_group": None, "combine_impl": "weighted_sum", "comm_backend": "comm",
        "expert_bias": None,
    }  # fmt: skip
    assert {name: getattr(layer, name) for name in expected} == expected
    descriptor = layer.expert_placement_descriptor
    validate_autoep_placement_descriptor(descriptor)
    # consecutive experts: ranks 0 and 1 of the group hold 0, 1 and 2, 3
    assert [entry["experts"] for entry in descriptor["ranks"]] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    "activation, names", [("gelu", {"w1", "w2"}), ("geglu", {"w1", "w2", "w3"}), ("swiglu", {"w1", "w2", "w3"})]
)
def test_tags_of_the_experts_weights(activation, names):
    _, layer = make_layer(activation=activation)
    weights = dict(layer.experts.named_parameters())
    assert set(weights) == names
    for name, weight in weights.items():
        shape = {"w1": [8, 12], "w2": [12, 8], "w3": [8, 12]}[name]
        assert list(weight.shape) == [2, *shape]
        assert is_moe_param(weight) and weight.allreduce is False and weight.group_name == "ep_size_2"
        assert weight.ds_zero_placement_family == "autoep_expert" and weight.ds_zero_partition_group_name == "ep_size_2"
        metadata = getattr(weight, DS_AUTOEP_UC_META)
        assert set(metadata) == {"expert_placement", "affine_map", "logical_shape", "ep_rank", "local_experts"}
        assert metadata["logical_shape"] == [4, *shape]
        assert (metadata["ep_rank"], metadata["local_experts"]) == (1, [2, 3])


def test_everything_else_is_shared():
    full, layer = make_layer()
    others = [p for name, p in layer.named_parameters() if not name.startswith("experts.")]
    assert len(others) == 1 and not is_moe_param(others[0]) and not hasattr(others[0], "group_name")
    assert torch.equal(others[0], full.router.weight)


def test_each_rank_holds_its_own_consecutive_experts():
    for ep_rank in range(EP_SIZE):
        full, layer = make_layer(ep_rank)
        assert layer.experts.first == 2 * ep_rank
        for name, weight in layer.experts.named_parameters():
            assert torch.equal(weight, full.experts.get_parameter(name)[2 * ep_rank : 2 * ep_rank + 2])


@pytest.mark.parametrize(
    "move", [lambda m: m.to(torch.bfloat16), lambda m: m.to("meta"), lambda m: m.to("meta").to_empty(device="cpu")]
)
def test_tags_survive_a_move(move):
    """A move may make new Parameter objects, which start without tags."""
    model = torch.nn.Sequential(make_layer()[1])
    move(model)
    for weight in model[0].experts.parameters():
        assert is_moe_param(weight) and weight.group_name == "ep_size_2" and hasattr(weight, DS_AUTOEP_UC_META)


def test_deepspeed_hands_over_its_group(monkeypatch):
    _, layer = make_layer()
    monkeypatch.setattr(groups, "_get_expert_parallel_group_dict", lambda: {"ep_size_2": "the group"})
    monkeypatch.setattr(groups, "_get_expert_parallel_group", {"ep_size_2": "the group"}.get)
    layer.set_deepspeed_parallelism(use_data_before_expert_parallel_=False)
    assert layer.ep_group == layer.dispatcher.group == "the group"


def test_all_expert_layers_of_a_model_are_replaced_and_no_other():
    shape = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, vocab_size=10)
    config = ImpConfig(**shape, num_experts=4, moe_layers=[0, 2], group_tokens=128, group_examples=3)
    with torch.device("meta"):
        model = ImpModel(config)
    names = set(model.state_dict())
    spread_experts(model, EP_SIZE, rank=3)
    kinds = [type(block.feed_forward).__name__ for block in model.blocks]
    assert kinds == ["ExpertParallelMoE", "FeedForward", "ExpertParallelMoE"]
    assert set(model.state_dict()) == names  # weights keep their names, whatever ep_size
    layer = model.blocks[2].feed_forward
    assert (layer.ep_rank, layer.grouping) == (1, Grouping(128, 3))  # rank 3 is the second of its group
    assert isinstance(layer.dispatcher, AllToAllDispatcher) and layer.experts.w1.device.type == "meta"
    before = list(model.modules())
    spread_experts(model, EP_SIZE, rank=3)
    assert all(a is b for a, b in zip(before, model.modules()))  # a second time changes nothing
