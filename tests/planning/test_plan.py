"""The plan: shares, tokens, memory and expert groups, against numbers worked out by hand."""

import io

import numpy as np
import pytest
from rich.console import Console

from helpers.recipe_runs import run_named, standalone_names
from imp_ds.errors import UserError
from imp_ds.families.imp.costs.cost import ImpCost, count_parameters, parameter_sizes
from imp_ds.families.imp.costs.memory import activation_bytes
from imp_ds.families.imp.costs.tokens import token_counts
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision import patches as vision
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, MaskedLanguage
from imp_ds.planning.hardware_profile import h200
from imp_ds.planning.memory import memory_of_rank
from imp_ds.planning.plan import expert_groups, plan, plan_tasks
from imp_ds.planning.table import show
from imp_ds.recipes import get_recipe
from imp_ds.tasks import Source, Task


def test_shares_and_tokens_of_the_released_recipe():
    # imp.md 6.1: one sweep is 1 + 1 + 1/12 + 1/5 + 1/12 + 1/8 = 2.49167 steps
    run = get_recipe("imp_b")
    tasks = {task.name: task for task in plan_tasks(run, ImpCost(run, run.model.to_config(32100, run.tasks)))}
    assert tasks["image_text"].share_of_steps == pytest.approx(1 / 2.4916667, rel=1e-6)  # 40.13 %
    assert tasks["video_class"].share_of_steps == pytest.approx(0.2 / 2.4916667, rel=1e-6)  # 8.03 %
    # 16 x 256 x 256: 1024 tokens, three quarters dropped; 16 x 128 x 128: 4 x 8 x 8; 4 x 256 x 256: 1 x 16 x 16
    for view in range(3):
        assert tasks[f"video_text, view {view}"].tokens == {"vision": 256, "text": 16}
        assert tasks[f"video_text, view {view}"].share_of_steps == pytest.approx(1 / 12 / 2.4916667 / 3, rel=1e-6)
    assert tasks["video_audio_text, view 0"].tokens_per_step == 8192 * (256 + 64 + 16)  # 2.75 M
    assert tasks["audio_class"].tokens_per_step == 2048 * 64
    assert sum(task.share_of_tokens for task in tasks.values()) == pytest.approx(1)


def test_tokens_are_those_that_samples_have():
    # 160 x 160 in patches of 16 x 16: 100, of which 0.9 are dropped; 1.0 - 0.9 is below 0.1 in floats
    run = get_recipe("imp_b")
    views = Views(vision=VisionView(frames=1, height=160, width=160, drop_rate=0.9))
    counted = token_counts(views, run.model.to_config(32100, run.tasks), run.data)
    picture = vision.preprocess(
        [np.zeros((1, 160, 160, 3), np.uint8)], 1, (160, 160), (4, 16, 16), drop_rate=0.9, rngs=[np.random.default_rng(0)]
    )
    assert counted == {"vision": 10} and picture["pixel_values"].shape[1] == 10


def test_shares_follow_the_weights_when_sampled():
    run = get_recipe("digits").override(["train.schedule=sampling", "tasks.image_text.weight=5"])
    tasks = plan_tasks(run, ImpCost(run, run.model.to_config(512, run.tasks)))
    assert tasks[0].share_of_steps == pytest.approx(0.5)  # 5 of 5 + 5 * 1


def test_memory_of_the_zero_stages():
    # 100 dense and 800 expert parameters, 8 ranks, ep_size 4: a rank holds 100 + 200; dense has 8 replicas, experts 2,
    # so a shared part is 100 / 8 + 200 / 2 = 112.5. bf16: 2 bytes of weights, 4 of gradients, 12 of optimizer.
    found = [memory_of_rank(100, 800, stage, 8, 4, "bf16", 7.0) for stage in range(4)]
    assert [(m.weights, m.gradients, m.optimizer) for m in found] == [
        (600, 1200, 3600),
        (600, 1200, 1350),
        (600, 450, 1350),
        (225, 450, 1350),
    ]
    assert found[0].total == 600 + 1200 + 3600 + 7
    # buffers of values of 2 bytes: two of 25 M from ZeRO 1 on, one of 500 M at ZeRO 3, which also gathers the 300 weights
    assert [m.buffers for m in found] == [0, 1e8, 1e8, 1e9 + 600]
    # one rank, float32: every stage is 4 + 4 + 12 bytes of everything, with the master copy that DeepSpeed keeps, and a bucket
    # that is no larger than what is in it; ZeRO 3 gathers a second copy of the weights
    totals = [memory_of_rank(100, 800, stage, 1, 1, "float32", 0.0).total for stage in range(4)]
    assert totals == [900 * 20, 900 * 24, 900 * 24, 900 * 28]

    # 20 dense and 80 expert parameters are trained: a rank has 20 + 20 of them, a shared part is 20 / 8 + 20 / 2 = 12.5
    averaged = [memory_of_rank(100, 800, stage, 8, 4, "bf16", 7.0, average=True) for stage in range(4)]
    assert [a.optimizer / f.optimizer for a, f in zip(averaged, found)] == pytest.approx([16 / 12] * 4)
    frozen = [memory_of_rank(100, 800, stage, 8, 4, "bf16", 0.0, (20, 80)) for stage in range(4)]
    assert [(m.weights, m.gradients, m.optimizer) for m in frozen] == [(600, 160, 480), (600, 160, 150), (600, 50, 150),
                                                                       (225, 50, 150)]  # fmt: skip


def test_activations_fall_with_ranks_micro_batches_and_checkpointing():
    run = get_recipe("imp_b")
    config, task, data = run.model.to_config(32100, run.tasks), run.task("image_class"), run.data
    full = activation_bytes(task, config, data, 8, 2, False)
    # 8192 * 256 tokens over 8 ranks, 2 bytes: 768 raw values of a frame, 6 widths around the blocks, 12 layers of 8 widths and 2
    # hidden ones (no QK-norm), and a width and a hidden one twice on the way back
    assert full == 8192 * 256 / 8 * 2 * (768 + 6 * 768 + 12 * (8 * 768 + 2 * 3072) + 2 * (768 + 3072))
    assert activation_bytes(task, config, data, 16, 2, False) == full / 2
    assert activation_bytes(task.model_copy(update={"micro_batches": 4}), config, data, 8, 2, False) == full / 4
    # every layer keeps its input alone, and one of them all
    assert activation_bytes(task, config, data, 8, 2, True) == (
        8192 * 256 / 8 * 2 * (768 + 6 * 768 + 12 * 768 + (8 * 768 + 2 * 3072) + 2 * (768 + 3072))
    )


def test_the_scores_of_all_words_take_memory():
    run = get_recipe("imp_b")
    words = Task(
        name="words", source=Source(path="texts", text="t"), views=Views(text=TextView(length=16)),
        objectives=[MaskedLanguage(rate=0.3)], batch_size=64, micro_batches=2,
    )  # fmt: skip
    config = run.model.to_config(32100, [words])
    nothing = words.model_copy(update={"objectives": [Classification(modality="text", num_classes=2)]})
    with_scores, without = (activation_bytes(task, config, run.data, 8, 2, False) for task in (words, nothing))
    # 4 texts of a micro-batch, ceil(2 * 0.3 * 16) = 10 tokens of each, three times 32,100 scores in float32
    assert with_scores - without == 3 * 4 * 10 * 32100 * 4


def test_active_parameters_follow_the_router():
    dense, sparse = get_recipe("imp_b"), get_recipe("imp_moe_b")
    chosen = sparse.override(["model.router=top_k", "model.experts_per_token=2", "model.drop_tokens=false"])
    found = {}
    for name, run in (("dense", dense), ("sparse", sparse), ("top_2", chosen)):
        config = run.model.to_config(32100, run.tasks)
        found[name] = count_parameters(config, parameter_sizes(config))
    # expert choice at capacity 1: one expert for each token on average; top-2 one more in 6 layers
    assert found["sparse"].active == pytest.approx(found["dense"].active, rel=0.01)
    assert found["top_2"].active - found["sparse"].active == 6 * found["sparse"].one_expert == 6 * 2 * 768 * 3072


def test_active_parameters_of_conditional_linears():
    """A token meets one matrix of each linear layer with merged experts, however many are summed; of routed ones those of its
    experts."""
    sparse, found = get_recipe("imp_moe_b"), {}
    for name, changes in {
        "full": [], "merged": ["model.gate=modality", "model.router=top_k", "model.experts_per_token=4"],
        "routed": ['model.conditional_linears=["up","down"]', "model.router=top_k", "model.drop_tokens=false"],
    }.items():  # fmt: skip
        config = sparse.override(changes).model.to_config(32100, sparse.tasks)
        found[name] = count_parameters(config, parameter_sizes(config))
    assert all(counted.one_expert == 2 * 768 * 3072 for counted in found.values())
    assert found["routed"].active - found["full"].active == 6 * 2 * 768 * 3072
    # one expert as under expert choice; the ids of three modalities are embedded, whose router is as large as that of tokens
    assert found["merged"].active - found["full"].active == 6 * 3 * 768


def test_activations_of_conditional_linears():
    run = get_recipe("imp_moe_b")
    data, task, tokens = run.data, run.task("image_class"), 8192 * 256 / 8
    kept = {}
    for name, changes in {
        "merged": ["model.gate=modality", "model.router=top_k"],
        "routed": ['model.conditional_linears=["up","down"]', "model.router=top_k", "model.drop_tokens=false"],
    }.items():  # fmt: skip
        config = run.override(changes).model.to_config(32100, run.tasks)
        kept[name] = activation_bytes(task, config, data, 8, 2, False)
    dense = run.override(["model.num_experts=0", "model.qk_norm=true"]).model.to_config(32100, run.tasks)
    full = activation_bytes(task, dense, data, 8, 2, False)
    # two bytes, 6 layers, two linear layers: two matrices of experts and their sum; or two rows of both widths for each token,
    # and four
    # values for each of 16 experts where it is decided
    assert kept["merged"] - full == 2 * 6 * 2 * 3 * 768 * 3072
    assert kept["routed"] - full == 2 * 6 * (2 * 2 * tokens * (768 + 3072) + 4 * tokens * 16)


def test_expert_groups_inside_and_across_nodes():
    groups = expert_groups(16, ep_size=4, world=8, gpus=4)
    assert [group.ranks for group in groups] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [group.nodes for group in groups] == [[0], [1]]
    assert groups[0].experts == [range(0, 4), range(4, 8), range(8, 12), range(12, 16)]
    assert expert_groups(16, ep_size=8, world=8, gpus=4)[0].nodes == [0, 1]
    run = get_recipe("imp_moe_b")
    assert not any("span" in w for w in plan(run.override(["train.ep_size=8"]), 2, 8).warnings)
    assert any("span" in w for w in plan(run.override(["train.ep_size=16"]), 2, 8).warnings)


def test_plan_refuses_what_cannot_be_trained():
    with pytest.raises(UserError, match="expert groups"):
        plan(get_recipe("imp_moe_b").override(["train.ep_size=8"]), 1, 4)
    with pytest.raises(UserError, match="precision"):
        plan(get_recipe("digits"), 1, 1, "fp8")
    with pytest.raises(UserError, match="hardware profile is of another precision"):
        plan(get_recipe("digits"), 1, 1, "float32", profile=h200())


@pytest.mark.parametrize("name", standalone_names())
def test_every_plan_is_shown(name):
    out = io.StringIO()
    run = run_named(name)
    show(plan(run, 1, 1), Console(file=out, width=150))
    text = out.getvalue()
    assert "share of steps" in text and "Memory of a rank" in text and "active per token" in text
    assert "Time of a step" in text and "assumed, not measured" in text
    assert ("Expert groups" in text) == ("is best" in text) == bool(run.model.num_experts or getattr(run.model, "experts", {}))


def test_without_rates_there_are_no_times():
    out = io.StringIO()
    show(plan(get_recipe("digits"), 1, 2, "float32"), Console(file=out, width=140))
    assert "no times: no hardware profile is known for float32" in out.getvalue() and "is best" not in out.getvalue()
