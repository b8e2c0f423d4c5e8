"""Recipes: all build, and the published ones have the published numbers."""

import numpy as np
import pytest
import torch

from helpers.recipe_runs import run_named, standalone_names
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families.imp.costs.cost import count_parameters, parameter_sizes
from imp_ds.families.imp.costs.tokens import token_counts
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.modalities.audio import patches as audio
from imp_ds.modalities.audio.log_mel import LogMel
from imp_ds.modalities.vision import patches as vision
from imp_ds.recipes import RECIPES, get_recipe
from imp_ds.tasks import Batch
from imp_ds.train.engine.layout import check_layout
from imp_ds.train.schedule import build_schedule

PUBLISHED = ("imp_s", "imp_b", "imp_moe_b", "imp_moe_l")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_itself_as_json(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("name", standalone_names())
def test_every_recipe_builds_alone_and_on_two_ranks(name):
    for world in (1, 2):
        check_layout(run_named(name), world, {"zero_optimization": {"stage": 2}})


def test_every_recipe_has_a_debug_twin_with_its_structure():
    for name in ("digits", "real_small", *PUBLISHED):
        run, twin = get_recipe(name), get_recipe(f"{name}_debug")
        assert [(t.name, t.reduction) for t in run.tasks] == [(t.name, t.reduction) for t in twin.tasks]
        # the twins of digits and real_small take every task in every sweep, so that a dozen steps see all of them
        assert [t.interval for t in twin.tasks] == [1 if name in ("digits", "real_small") else t.interval for t in run.tasks]
        assert [[o.kind for o in t.objectives] for t in run.tasks] == [[o.kind for o in t.objectives] for t in twin.tasks]
        assert [t.views.names() for t in run.tasks] == [t.views.names() for t in twin.tasks]
        schedule = build_schedule(twin.train.schedule, twin.tasks, twin.train.seed)
        assert {schedule.at(step).name for step in range(twin.train.steps)} == {t.name for t in twin.tasks}  # each has a turn
        assert bool(run.model.num_experts) == bool(twin.model.num_experts)
        config = twin.model.to_config(512, twin.tasks)
        assert count_parameters(config, parameter_sizes(config)).total < 2_000_000
        assert twin.train.steps <= 32 and max(t.batch_size for t in twin.tasks) <= 8


def test_recipes_share_nothing():
    first, second = get_recipe("digits"), get_recipe("digits")
    first.tasks[0].source.path = "elsewhere"
    first.tasks[0].views.vision.height = 8
    assert second == get_recipe("digits") and first.tasks[4].source.path == "images"


def test_an_unknown_recipe_is_suggested():
    with pytest.raises(UserError, match="did you mean imp_moe_b"):
        get_recipe("imp_mo_b")


@pytest.mark.parametrize(
    "name, encoder, active",
    [
        # blocks and final norm. L layers of 4 d^2 + 2 d f weights, two norms of d each, a last norm of 2 d (it has a bias).
        # S: 12 (4 * 384^2 + 2 * 384 * 1536) + 12 * 2 * 384 + 2 * 384
        ("imp_s", 21_233_664 + 9_984, None),
        # B: 12 (4 * 768^2 + 2 * 768 * 3072) + 12 * 2 * 768 + 2 * 768 = 84,954,624, as the release's notebook prints
        ("imp_b", 84_954_624, None),
        # MoE-B: + 15 additional experts of 2 * 768 * 3072 in 6 layers, 6 routers of 16 * 768, 12 * 2 QK-norms of 64
        ("imp_moe_b", 84_954_624 + 6 * 15 * 4_718_592 + 6 * 16 * 768 + 12 * 2 * 64, 84_954_624 + 6 * 16 * 768 + 12 * 2 * 64),
        # MoE-L: 24 (4 * 1024^2 + 2 * 1024 * 4096) + 24 * 2 * 1024 + 2 * 1024, and likewise with 24 * 2 QK-norms of 64
        ("imp_moe_l", 302_041_088 + 6 * 15 * 8_388_608 + 6 * 16 * 1024 + 24 * 2 * 64, 302_041_088 + 6 * 16 * 1024 + 24 * 2 * 64),
    ],
)
def test_published_sizes(name, encoder, active):
    run = get_recipe(name)
    config = run.model.to_config(run.data.vocab_size, run.tasks)
    found = count_parameters(config, parameter_sizes(config))
    assert found.encoder == encoder
    assert found.active == (active or encoder)


def test_published_schedule_and_placement():
    run = get_recipe("imp_moe_l")
    assert [t.interval for t in run.tasks] == [1, 1, 12, 5, 12, 8]
    assert [t.batch_size for t in run.tasks] == [8192, 8192, 8192, 2048, 8192, 2048]
    assert run.model.to_config(32100, run.tasks).moe_layer_indices == [18, 19, 20, 21, 22, 23]
    assert get_recipe("imp_moe_b").model.to_config(32100, run.tasks).moe_layer_indices == [6, 7, 8, 9, 10, 11]
    # Large: 1e-5 -> 1e-6 over 5k, -> 5e-4 over 50k
    assert run.learning_rate(0) == 1e-5 and run.learning_rate(5_000) == pytest.approx(1e-6)
    assert run.learning_rate(55_000) == pytest.approx(5e-4)
    # Small: 1e-6 -> 8e-4 in 10k, to 0 at 200k
    small = get_recipe("imp_s")
    assert small.learning_rate(0) == 1e-6 and small.learning_rate(10_000) == pytest.approx(8e-4)
    assert small.learning_rate(200_000) == 0.0 and small.train.steps == 200_000


def noise_batch(run: RunConfig, task, config) -> Batch:
    """A batch of noise as the processors would make it for the task."""
    rng, inputs, size = np.random.default_rng(0), {}, task.batch_size
    rngs = [np.random.default_rng(place) for place in range(size)]
    if (view := task.views.vision) is not None:
        clips = [rng.integers(0, 256, (view.frames, view.height, view.width, 3), dtype=np.uint8)] * size
        drop = dict(drop_rate=view.drop_rate, rngs=rngs)
        found = vision.preprocess(clips, view.frames, (view.height, view.width), config.vision_patch, **drop)
        inputs["vision"] = {name: torch.from_numpy(array) for name, array in found.items()}
    if (view := task.views.audio) is not None:
        mel = LogMel(sampling_rate=16000, frame_length=400, hop_length=160, mel_bins=64)
        waveforms = [rng.normal(size=9000).astype(np.float32) * 0.1] * size
        drop = dict(drop_rate=view.drop_rate, rngs=rngs)
        found = audio.preprocess(waveforms, [16000] * size, mel, view.seconds, config.audio_patch, **drop)
        inputs["audio"] = {name: torch.from_numpy(array) for name, array in found.items()}
    if (view := task.views.text) is not None:
        ids = torch.ones(size, view.length, dtype=torch.long)
        inputs["text"] = {"input_ids": ids, "attention_mask": ids}
    return Batch(task.name, inputs, {"label": torch.arange(size) % 4})


@pytest.mark.parametrize(
    "name", [name for name in standalone_names() if name.endswith("_debug") and run_named(name).model.family == "imp"]
)
def test_debug_twins_feed_their_model_and_tokens_are_counted_rightly(name):
    run = get_recipe(name)
    config = run.model.to_config(64, run.tasks)
    model = ImpForPreTraining(config)
    for task in (seen for parent in run.tasks for seen in parent.variants()):
        batch = noise_batch(run, task, config)
        counts = {modality: next(iter(arrays.values())).shape[1] for modality, arrays in batch.inputs.items()}
        assert counts == token_counts(task.views, config, run.data)
        loss, metrics, _ = model(batch)
        loss.backward()
        assert torch.isfinite(loss) and any("accuracy" in metric for metric in metrics)
