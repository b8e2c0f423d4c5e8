"""The recipes of Uni-MoE: published sizes, and twins of the same structure."""

import pytest
import torch

from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.build import meta_module
from imp_ds.recipes import get_recipe
from imp_ds.train.schedule import build_schedule


@pytest.mark.parametrize("name, experts, active, total", [("uni_moe_7b_4e", 4, 8.9, 13.2), ("uni_moe_7b_8e", 8, 8.9, 21.9)])
def test_published_sizes(name, experts, active, total):
    """Table 1, in billions. A dense base has 2 * 32000 * 4096 + 32 * (4 * 4096^2 + 3 * 4096 * 11008) + 65 * 4096 = 6,738,415,616;
    16 layers have `experts` feed-forwards of 3 * 4096 * 11008 in place of one, and a router of experts * 4096."""
    run = get_recipe(name)
    family = family_of(run)
    language_model = meta_module(family.Model, family.config(run)).uni_moe.language_model
    base, one = 6_738_415_616, 3 * 4096 * 11008
    expected = base + 16 * ((experts - 1) * one + experts * 4096)
    assert sum(parameter.numel() for parameter in language_model.parameters()) == expected
    assert round(expected / 1e9, 1) == total
    assert round((base + 16 * one) / 1e9, 1) == active  # two experts of each token, in place of one feed-forward
    assert family.moe_layers(family.config(run)) == list(range(1, 32, 2))


@pytest.mark.parametrize("name", ["uni_moe_7b_4e", "uni_moe_7b_8e", "talk_real"])
def test_the_twin_has_the_structure(name):
    run, twin = get_recipe(name), get_recipe(f"{name}_debug")
    same = lambda run: [(t.name, t.weight, t.views.names(), [o.kind for o in t.objectives]) for t in run.tasks]  # noqa: E731
    assert same(run) == same(twin) and run.train.trainable == twin.train.trainable
    for field in ("num_experts", "moe_layers", "router_balance", "feature_layer"):
        assert getattr(run.model, field) == getattr(twin.model, field)
    assert run.model.tower_names() == twin.model.tower_names() == {"image": "vision", "video": "vision", "audio": "audio"}
    schedule = build_schedule(twin.train.schedule, twin.tasks, twin.train.seed)
    assert {schedule.at(step).name for step in range(twin.train.steps)} == {t.name for t in twin.tasks}
    family = family_of(twin)
    module = meta_module(family.Model, family.config(twin))
    assert sum(parameter.numel() for parameter in module.parameters()) < 2_000_000


def test_a_conversation_of_the_published_model_has_the_published_tokens():
    """576 of an image of 336 pixels, as many of a video, which is the mean over its frames, 50 of each 30 s of audio."""
    from imp_ds.families.uni_moe.processor import media_tokens

    run = get_recipe("uni_moe_7b_4e")
    assert media_tokens(family_of(run).config(run)) == {"image": 576, "video": 576, "audio": 50}
    assert run.model.media().chunk_seconds == 30.0 and torch.tensor(run.learning_rate(285)).isclose(torch.tensor(4e-5))


def test_talk_joint_is_put_together_from_models_of_other_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = get_recipe("talk_joint")
    with pytest.raises(UserError, match="model.language_model is not there.*\n.*runs/talk/language/model"):
        family_of(run).config(run)
    assert {task.name for task in run.tasks} == {evaluation.name for evaluation in run.evaluations}
    assert (run.model.num_experts, run.model.moe_layers) == (4, "every:2")


def test_talk_trains_specialists_of_one_kind_of_media_and_mixes_them():
    staged = get_recipe("talk")
    assert [stage.name for stage in staged.stages] == ["language", "align", "image", "video", "speech", "moe"]
    assert staged.needed("image") == staged.needed("speech") == ["language", "align"]
    moe = staged.stage("moe").run
    assert list(moe.model.experts) == ["base", "image", "video", "speech"] and staged.needed("moe")[0] == "language"
    tasks = {stage.name: {task.name for task in stage.run.tasks} for stage in staged.stages}
    assert tasks["language"] | tasks["image"] | tasks["video"] | tasks["speech"] < tasks["moe"]
    assert not tasks["image"] & tasks["speech"] and tasks["moe"] == {task.name for task in get_recipe("talk_joint").tasks}
