"""What a step costs of which a part of the model is frozen, against sums worked out by hand.

Shapes: B conversations, L tokens, D width, F feed-forward width, V vocabulary, S width of a tower.
"""

import pytest
import torch

from helpers.chat_run import make_chat_run
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.models.uni_moe.lora import LoraSettings
from imp_ds.planning.plan import plan
from imp_ds.tasks import Batch
from imp_ds.train.start import show_trained

B, L, D, F, V, LAYERS = 4, 200, 32, 64, 120, 2
LINEARS, ATTENTION = 2 * L * (4 * D * D + 3 * D * F), 2 * 2 * L * L * D  # a layer, forward, of a conversation
HEAD = 2 * (L - 1) * D * V  # nothing is predicted behind the last token
# a layer of a tower of width 16, 32 in its feed-forward, of so many tokens: four products of the width, two of the feed-forward
LAYER = lambda tokens: 2 * tokens * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * tokens * tokens * 16  # noqa: E731
# of three images (a video has two frames): 4 patches of 4 x 4 x 3, and a class token; of 100 frames of 8 mel bins convolutions
# of width 3, the second with stride 2
PATCHES, CONVOLUTIONS = 2 * 4 * 48 * 16, (2 * 100 * 3 * 8 * 16, 2 * 50 * 3 * 16 * 16)
TOWERS = 3 * (PATCHES + LAYER(5)) + sum(CONVOLUTIONS) + LAYER(50)
RAW = 3 * PATCHES + CONVOLUTIONS[0]  # products of raw values, which need no gradient
CONNECTORS = 2 * (4 + 4 + 5) * 16 * D  # of an image, a video and a second of audio, 50 tokens in tens


def cost_of(root, trainable, **model):
    run = make_chat_run(root, train={"trainable": trainable})
    run = run.model_copy(update={"model": run.model.model_copy(update=model)})
    return run, family_of(run).cost(run)


def flops_of(root, trainable, settings=(), **model) -> float:
    run, _ = cost_of(root, trainable, **model)
    run = run.override(list(settings))
    cost = family_of(run).cost(run)
    flops = cost.flops(run.tasks[0], 1)
    assert flops == 2 * cost.rank_flops(run.tasks[0], 2, False)
    return flops / B


def test_everything_is_trained(tmp_path):
    every = 3 * (TOWERS + CONNECTORS + LAYERS * (LINEARS + ATTENTION) + HEAD) - RAW
    assert flops_of(tmp_path, None) == flops_of(tmp_path, ["*"]) == every


def test_gradients_go_through_a_frozen_language_model(tmp_path):
    """Towers run forward alone; connectors have no gradient of their input; the language model none of its weights, but attention
    all of its own."""
    found = flops_of(tmp_path, ["uni_moe.connectors.*"])
    assert found == TOWERS + 2 * CONNECTORS + LAYERS * (2 * LINEARS + 3 * ATTENTION) + 2 * HEAD
    # features of frozen towers, computed before the first step, cost nothing in it
    cached = flops_of(tmp_path, ["uni_moe.connectors.*"], ["data.messages.feature_cache_gb=1"])
    assert cached == found - TOWERS


def test_a_tower_that_is_trained_is_not_cached(tmp_path):
    trainable = ["uni_moe.connectors.*", "uni_moe.audio_tower.*"]
    whole, cached = (flops_of(tmp_path, trainable, [f"data.messages.feature_cache_gb={gb}"]) for gb in (0, 1))
    assert whole - cached == 3 * (PATCHES + LAYER(5))


def test_nothing_goes_back_before_the_first_trained_layer(tmp_path):
    """Of the second layer all is trained, with the norm at its beginning; what is before it runs forward alone."""
    found = flops_of(tmp_path, ["uni_moe.language_model.model.layers.1.*"])
    assert found == TOWERS + CONNECTORS + (1 + 3) * (LINEARS + ATTENTION) + 2 * HEAD


def test_routers_alone(tmp_path):
    """Two of four experts for each token. In the first layer a gradient begins at the weights of the experts' answers: it goes to
    the router, whose tokens need none. In the second it goes through attention, router and experts, of which the router alone
    has some of its own."""
    found = flops_of(tmp_path, ["*router*"], num_experts=4)
    attention, experts, router = 2 * L * 4 * D * D, 2 * 2 * L * 3 * D * F, 2 * L * D * 4
    first = attention + ATTENTION + experts + 2 * router
    second = 2 * attention + 3 * ATTENTION + 2 * experts + 3 * router
    assert found == TOWERS + CONNECTORS + first + second + 2 * HEAD


def test_lora_beside_frozen_weights(tmp_path):
    """Rank 3, on queries and on both matrices that enter experts. In the first layer nothing before it has a gradient: A has none
    of its input, and in attention the queries alone have one, half of its backward. Base weights have none anywhere."""
    lora = LoraSettings(r=3, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"])
    found = flops_of(tmp_path, ["*.lora.*"], num_experts=4, lora=lora)
    square, of_queries, of_experts = 2 * L * D * D, 2 * L * D * 3, 2 * 2 * 2 * L * 3 * (D + F)  # A and B of queries cost the same
    experts, router = 2 * 2 * L * 3 * D * F, 2 * L * D * 4
    first = (3 + 2) * square + (2 + 3) * of_queries + 2 * ATTENTION
    second = 2 * 4 * square + (3 + 3) * of_queries + 3 * ATTENTION
    assert found == TOWERS + CONNECTORS + first + second + 2 * (2 * experts + 3 * of_experts + 2 * router) + 2 * HEAD


def test_frozen_parts_keep_less_and_have_no_optimizer(tmp_path):
    """With checkpointing a layer keeps what enters it where a gradient goes through it, and one of them all. The head keeps the
    gradient of the states, and of its weight where that is trained."""
    kept = {}
    for name, trainable in {
        "all": None,
        "through": ["uni_moe.connectors.*"],
        "last": ["*.layers.1.*"],
        "head": ["*lm_head*"],
    }.items():
        run, cost = cost_of(tmp_path, trainable)
        kept[name] = [cost.activation_bytes(run.tasks[0], 1, 4, again) / 4 for again in (False, True)]
    assert kept["all"][0] > kept["through"][0] > kept["last"][0] > kept["head"][0]
    # the weight's gradient [V, D], and the number of tokens, which the sum of losses is divided by
    assert kept["head"][0] == kept["head"][1] == V * D + 1
    entering = B * L * D
    assert kept["last"][1] == kept["last"][0]  # one layer, which is kept as a whole either way
    assert kept["through"][1] < kept["through"][0] - entering
    found = plan(cost_of(tmp_path, ["uni_moe.connectors.*"])[0], 1, 1, "float32")
    # three linear layers of 16 x 32 with a bias; 4 bytes of gradients, 12 of the optimizer
    assert found.trained.trained == 3 * (16 * 32 + 32)
    assert [(one.gradients, one.optimizer) for one in found.memory] == [(4 * 3 * 544, 12 * 3 * 544)] * 4


def test_what_is_trained_is_listed(tmp_path, capsys):
    run, _ = cost_of(tmp_path, ["*.layers.*.mlp.*", "*norm*", "*connectors.audio*"], num_experts=4)
    run = run.override(["model.moe_layers=[1]"])
    show_trained(run, family_of(run).config(run), tmp_path)
    head, *lines = capsys.readouterr().out.splitlines()
    assert "  uni_moe.language_model.model.layers.1.mlp.moe.experts.w1 [4, 32, 64]: 8,192" in lines
    assert "  uni_moe.language_model.model.layers.{0-1}.input_layernorm.weight 2 x [32]: 64" in lines
    assert "  uni_moe.language_model.model.layers.0.mlp.gate_proj.weight [64, 32]: 2,048" in lines
    assert "  uni_moe.connectors.audio.projection.weight [32, 16]: 512" in lines
    found = plan(run, 1, 1, "float32").trained
    assert head == found.lines()[0] and f"trained: {found.trained:,} of {found.trained + found.frozen:,}" in head
    assert found.trained == sum(one.parameters for one in found.tensors)


def test_patterns_of_nothing_are_refused_by_a_plan(tmp_path):
    with pytest.raises(UserError, match=r"(?s)train.trainable: the model has no such parameter.*\*lora\*"):
        plan(cost_of(tmp_path, ["*lora*"])[0], 1, 1, "float32")


def test_a_batch_costs_what_is_in_it(tmp_path):
    """Three rows of 60 tokens with two images, a sound and no video; of two ranks one has a blank video go through the tower."""
    counts = {"image": [2, 0, 0], "video": [0, 0, 0], "audio": [0, 1, 0]}
    inputs = {"input_ids": torch.zeros(3, 60)} | {f"{kind}_count": torch.tensor(some) for kind, some in counts.items()}
    text = 3 * (LAYERS * (2 * 2 * 60 * (4 * D * D + 3 * D * F) + 3 * 2 * 2 * 60 * 60 * D) + 2 * 2 * 59 * D * V)
    image, video = PATCHES + LAYER(5) + 2 * 2 * 4 * 16 * D, 2 * (PATCHES + LAYER(5)) + 2 * 2 * 4 * 16 * D
    audio = sum(CONVOLUTIONS) + LAYER(50) + 2 * 2 * 5 * 16 * D
    run, cost = cost_of(tmp_path, ["uni_moe.connectors.*"])
    cached = family_of(run).cost(run.override(["data.messages.feature_cache_gb=1"]))
    for world, blank in ((1, 0), (2, video)):
        batch = Batch("chat", {"messages": inputs}, {})
        assert cost.batch_flops(world, False)(batch) == text + 2 * image + audio + blank
        towers = 2 * (PATCHES + LAYER(5)) * (1 + (world > 1)) + sum(CONVOLUTIONS) + LAYER(50)
        assert cached.batch_flops(world, False)(batch) == text + 2 * image + audio + blank - towers
