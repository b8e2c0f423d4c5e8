"""RunConfig: overrides and their messages, files, learning rates, the ImpConfig made of it, and layouts that are refused."""

import json
import math

import pytest

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig
from imp_ds.errors import UserError
from imp_ds.families.imp.costs.tokens import token_counts
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.audio.view import AudioSettings, AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.overrides import parse_record
from imp_ds.recipes import get_recipe
from imp_ds.train.engine.layout import check_layout

BF16_FP32 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
ZERO2, ZERO3 = {"zero_optimization": {"stage": 2}}, {"zero_optimization": {"stage": 3}}
DRAWN, NORMALISED = "train.schedule=sampling_per_rank", "optimizer.task_normalisation=true"


@pytest.fixture
def run() -> RunConfig:
    return get_recipe("digits")


@pytest.mark.parametrize(
    "override, read, value",
    [
        ("train.steps=100", lambda r: r.train.steps, 100),
        ("tasks.image_text.batch_size=64", lambda r: r.tasks[0].batch_size, 64),
        ("tasks.1.interval=3", lambda r: r.tasks[1].interval, 3),
        ("model.moe_layers=[1,3]", lambda r: r.model.moe_layers, [1, 3]),
        ("model.moe_layers=last:2", lambda r: r.model.moe_layers, "last:2"),
        ("model.vision_patch=[2,8,8]", lambda r: r.model.vision_patch, (2, 8, 8)),
        ("data.root=123", lambda r: r.data.root, "123"),  # a string field takes digits as they stand
        ("data.root=a=b", lambda r: r.data.root, "a=b"),
        ("model.qk_norm=false", lambda r: r.model.qk_norm, False),
        ("optimizer.peak_rate=1e-4", lambda r: r.optimizer.peak_rate, 1e-4),
        ("tasks.film_text.objectives.0.temperature=0.5", lambda r: r.tasks[1].objectives[0].temperature, 0.5),
        ("tasks.image_digit.views.text.length=8", lambda r: r.tasks[4].views.text, TextView(length=8)),  # was not set
        ("evaluations.audio.classes=null", lambda r: r.evaluations[2].classes, None),
    ],
)
def test_override_sets_one_field_and_leaves_the_original(run, override, read, value):
    changed = run.override([override])
    assert read(changed) == value
    assert changed != run and run == get_recipe("digits")


def test_later_overrides_win(run):
    assert run.override(["train.steps=3", "train.steps=4"]).train.steps == 4


@pytest.mark.parametrize(
    "override, parts",
    [
        ("train.stps=1", ["train.stps", "did you mean steps?", "ep_size"]),
        ("trian.steps=1", ["trian", "did you mean train?", "optimizer"]),
        ("tasks.imge_text.batch_size=1", ["imge_text", "did you mean image_text"]),
        ("tasks.17.batch_size=1", ["17", "image_text"]),
        ("data.root.x=1", ["data.root.x", "nothing below data.root"]),
        ("train.steps=abc", ["train.steps", "'abc'", "integer, at least 1"]),
        ("train.steps=true", ["train.steps", "'true'", "integer"]),
        ("train.steps=1.5", ["'1.5'", "integer"]),
        ("train.steps=0", ["'0'", "at least 1"]),
        ("train.gradient_checkpointing=1", ["gradient_checkpointing", "'1'", "boolean"]),
        ("train.schedule=random", ["'random'", "rotation or sampling"]),
        ("model.size=XXL", ["'XXL'", "tiny or S or B or M or L"]),
        ("model.vision_patch=[2,8]", ["'[2,8]'", "array of 3"]),
        ("optimizer.peak_rate=Infinity", ["optimizer.peak_rate", "finite"]),
        ("train.steps", ["path=value", "--set train.steps=100"]),
        ("tasks.image_text.source.label=null", ["task image_text", "label"]),
        ("tasks.image_text.name=film_text", ["one name", "film_text"]),
        ("tasks=[]", ["tasks", "'[]'", "array of 1 or more"]),
    ],
)
def test_override_refuses_with_one_clear_message(run, override, parts):
    with pytest.raises(UserError) as caught:
        run.override([override])
    for part in parts:
        assert part in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_saved_and_loaded_is_equal(run, tmp_path):
    run = run.override(["model.moe_layers=[1]", "data.tokenizer=some/name"])
    path = run.save(tmp_path)
    assert path == tmp_path / "run_config.json"
    assert RunConfig.load(path) == run == RunConfig.load(tmp_path)


def test_load_refuses_damaged_and_foreign_files(run, tmp_path):
    path = run.save(tmp_path)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="not JSON"):
        RunConfig.load(path)
    path.write_text(text.replace('"interval"', '"intervall"', 1))
    with pytest.raises(UserError, match="tasks.0.intervall(.|\n)*did you mean interval"):
        RunConfig.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        RunConfig.load(tmp_path / "nothing.json")


def test_unknown_key_inside_a_union_is_suggested():
    data = get_recipe("digits").model_dump()
    data["tasks"][0]["objectives"][0]["temprature"] = 1.0
    with pytest.raises(UserError, match="did you mean temperature"):
        parse_record(RunConfig, data, "test")


def test_learning_rate_of_the_base_schedule():
    # imp.md 6.2, Base: 2e-5 -> 5e-6 over 2k, 5e-6 -> 1e-3 over 25k, cosine to 1e-6, decay_steps 500k after the pre-warmup
    rate = get_recipe("imp_b").learning_rate
    assert rate(0) == 2e-5
    assert rate(1_000) == pytest.approx((2e-5 + 5e-6) / 2)  # half way down
    assert rate(2_000) == pytest.approx(5e-6)
    assert rate(14_500) == pytest.approx((5e-6 + 1e-3) / 2)  # half of the 25k
    assert rate(27_000) == pytest.approx(1e-3)
    # the cosine lasts 500k - 25k = 475k steps from 27k on; at its half the rate is the mean of both ends
    assert rate(27_000 + 237_500) == pytest.approx((1e-3 + 1e-6) / 2)
    # at a third: cos(pi/3) = 1/2, so three quarters of the way are left
    assert rate(27_000 + 475_000 // 3) == pytest.approx(1e-6 + 0.75 * (1e-3 - 1e-6), rel=1e-4)
    assert rate(502_000) == pytest.approx(1e-6) == rate(600_000)


def test_learning_rate_ends_with_the_run_when_nothing_else_is_said():
    # 10 steps of warmup from 0 to 1, then a cosine over the other 90 to 0.2
    optimizer = OptimizerSettings(peak_rate=1.0, warmup_steps=10, final_rate=0.2)
    assert optimizer.learning_rate(5, 100) == pytest.approx(0.5)
    assert optimizer.learning_rate(10, 100) == pytest.approx(1.0)
    assert optimizer.learning_rate(55, 100) == pytest.approx(0.6)
    assert optimizer.learning_rate(100, 100) == pytest.approx(0.2)
    assert OptimizerSettings(peak_rate=0.3, final_rate=0.3).learning_rate(7, 100) == pytest.approx(0.3)
    # a run cut short within the warmup stays in it: no jump, no division by zero
    assert optimizer.learning_rate(4, 5) == pytest.approx(0.4)
    assert math.isfinite(optimizer.learning_rate(10, 10))


def test_to_config_carries_sizes_changes_and_objectives(run):
    config = run.model.to_config(100, run.tasks)
    assert (config.hidden_size, config.num_hidden_layers) == (128, 4)  # tiny
    assert (config.num_experts, config.vocab_size, config.group_examples) == (4, 100, 1)
    assert config.vision_max == [16, 64, 64]
    assert config.text_max == 32
    assert ModelSettings(size="B").to_config(100, run.tasks).text_max == 4096  # untouched: ImpConfig's own
    assert list(config.objectives) == [task.name for task in run.tasks]
    assert config.objectives["image_digit"] == {
        "objectives": [
            {
                "kind": "classification",
                "modality": "vision",
                "num_classes": 10,
                "names": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
                "loss": "softmax",
                "label_smoothing": 0.0,
                "weight": 1.0,
                "sides": {"inputs": ["vision"], "targets": [], "causal": [], "candidates": False},
                "spaces": [],
            }
        ],
        "reduction": "sum",
    }
    assert json.loads(json.dumps(config.objectives)) == config.objectives


def test_token_counts_by_hand(run):
    config = run.model.to_config(100, run.tasks)  # patches 4 x 8 x 8 and 16 x 16
    data = DataSettings(audio=AudioSettings(frame_length=400, hop_length=160, mel_bins=64))
    views = Views(
        vision=VisionView(frames=8, height=64, width=32, drop_rate=0.7), audio=AudioView(seconds=1.28), text=TextView(length=16)
    )
    # vision 2 * 8 * 4 = 64, of which int(0.3 * 64) = 19 stay; audio 20480 / 160 = 128 frames: 8 * 4 patches
    assert token_counts(views, config, data) == {"vision": 19, "audio": 32, "text": 16}
    assert token_counts(views, config, data, training=False)["vision"] == 64
    # an image is one step; 1.0 s is 100 frames, filled up to 7 patches of 16
    views = Views(vision=VisionView(frames=1, height=32, width=32), audio=AudioView(seconds=1.0))
    assert token_counts(views, config, data) == {"vision": 16, "audio": 28}


@pytest.mark.parametrize(
    "overrides, world, ds, parts",
    [
        (["train.ep_size=3"], 3, ZERO2, ["4 experts", "ep_size = 3", "1, 2, 4"]),
        (["train.ep_size=2"], 1, ZERO2, ["1 ranks", "ep_size = 2", "divides 1: 1"]),
        (["train.ep_size=2", "model.num_experts=0"], 2, ZERO2, ["without experts", "--set train.ep_size=1"]),
        (["tasks.film_text.batch_size=30"], 4, ZERO2, ["task film_text", "30 over 4 ranks", "multiples of 4", "batch_size=32"]),
        (["tasks.film_text.views.vision.height=36"], 2, ZERO2,
         ["task film_text", "36", "change tasks.film_text.views.vision.height, or model.vision_patch"]),
        (["model.group_examples=32"], 2, ZERO2, ["groups of 16 among 16", "of 32 among all 32", "group_examples=16"]),
        (["tasks.0.batch_size=36", "tasks.0.micro_batches=8"], 2, ZERO2,
         ["36 over 2 ranks in 8 micro-batches", "of 16", "batch_size=48"]),
        ([], 2, {"zero_optimization": {"stage": 0}}, ["ZeRO 0 with experts", "clip = 1.0", "optimizer.clip=0"]),
        ([], 2, {}, ["ZeRO 0 with experts"]),  # no section is stage 0
        ([], 2, {**ZERO2, "fp16": {"enabled": True}}, ["float16", "bf16"]),
        ([], 2, {**ZERO2, "bf16": {"enabled": True, "check_grad_overflow": False}}, ["check_grad_overflow"]),
        (["optimizer.clip=0"], 2, {"bf16": {"enabled": True}}, ["bfloat16 at ZeRO 0", "stage 1"]),
        (["optimizer.clip=0"], 2, {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, ["no offload"]),
        ([], 2, {"zero_optimization": {"stage": 1}, **BF16_FP32}, ["ZeRO 1", "grad_accum_dtype", '"stage": 2']),
        ([], 2, {"zero_optimization": {"stage": 2, "contiguous_gradients": False}}, ["contiguous_gradients"]),
        ([], 2, {**ZERO2, "scheduler": {"type": "WarmupLR"}}, ["scheduler", "learning rate"]),
        ([], 2, {**ZERO2, "elasticity": {}}, ["elasticity"]),
        ([], 2, {**ZERO2, "expert_parallel": {"enabled": True}}, ["expert_parallel", "train.ep_size"]),
        ([], 2, {**ZERO2, "gradient_allreduce_op": "sum"}, ["averaged"]),
        ([], 2, {"zero_optimization": {"stage": 4}}, ["ZeRO stage", "4"]),
        (["tasks.image_text.views.vision.height=30"], 1, ZERO2, ["task image_text", "4 x 30 x 32", "4 x 8 x 8"]),
        (["tasks.image_text.views.vision.height=128"], 1, ZERO2, ["larger than", "16 x 64 x 64"]),
        (["tasks.image_text.views.text.length=33"], 1, ZERO2, ["task image_text", "33", "text_max = 32"]),
        (["model.group_tokens=50"], 1, ZERO2, ["task film_text", "54 tokens", "group_tokens = 50"]),
        (["model.moe_layers=middle:2"], 1, ZERO2, ["moe_layers", "middle:2", "last:N"]),
        (["model.gate=task"], 1, ZERO2, ["evaluation image: ", "task gates", "no task", "evaluations.image.task=image_text"]),
        (["model.gate=attribute", "evaluations.image.task=birds"], 1, ZERO2, ["evaluation image: ", "birds", "film_text"]),
        (["model.gate=modality", "model.router=expert_choice"], 1, ZERO2, ["modality gate with router expert_choice", "top_k"]),
        ([DRAWN], 2, ZERO3, ["different tasks at ZeRO 3", "sampling_per_rank", "stage 1 or 2", "train.schedule=sampling"]),
        ([NORMALISED], 2, ZERO2, ["clipping beside task normalisation", "optimizer.clip = 1.0", "optimizer.clip=0"]),
        ([NORMALISED, "optimizer.clip=0", DRAWN, "train.ep_size=2"], 2, ZERO2, ["groups of ranks draw", "train.ep_size = 2"]),
        (["train.interference_every=9"], 1, ZERO3, ["interference", "interference_every = 9", "imp_ds interference RUN"]),
    ],
)
def test_layouts_that_cannot_be_right_are_refused(run, overrides, world, ds, parts):
    with pytest.raises(UserError) as caught:
        check_layout(run.override(overrides), world, ds)
    for part in parts:
        assert part in str(caught.value)


def test_layouts_that_are_right_pass(run):
    for world, ep_size in ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)):
        check_layout(run.override([f"train.ep_size={ep_size}"]), world, ZERO2)
    check_layout(run.override(["optimizer.clip=0"]), 2, {})
    check_layout(run.override(["model.num_experts=0"]), 2, {})
    # a gate that knows no tokens has no groups of them, and evaluations may be given a task
    check_layout(run.override(["model.gate=modality", "model.group_examples=32", "model.group_tokens=8"]), 2, ZERO2)
    reported = [f"evaluations.{name}.task=image_text" for name in ("image", "video", "audio")]
    check_layout(run.override(["model.gate=task", *reported]), 2, ZERO2)
    check_layout(run.override([DRAWN, "train.ep_size=2", "train.interference_every=9"]), 4, ZERO2)
    check_layout(run.override([DRAWN, NORMALISED, "optimizer.clip=0"]), 2, ZERO2)
    check_layout(run.override([NORMALISED, "optimizer.clip=0", "train.ep_size=2"]), 2, ZERO3)


def test_interference_is_between_tasks(run):
    run.tasks, run.train.interference_every = run.tasks[:1], 9
    with pytest.raises(UserError, match="one task"):
        check_layout(run, 1, ZERO2)


def test_sampling_needs_a_weight(run):
    for task in run.tasks:
        task.weight = 0.0
    for run.train.schedule in ("sampling", "sampling_per_rank"):
        with pytest.raises(UserError, match="no task has a weight"):
            check_layout(run, 1, ZERO2)


def test_options_of_an_evaluator_are_set_one_by_one():
    asked = get_recipe("talk").stage("moe").run
    found = asked.override(["evaluations.transcript.options.samples=10", "evaluations.0.options.blind=false"])
    assert next(one for one in found.evaluations if one.name == "transcript").options["samples"] == 10
    assert found.evaluations[0].options == asked.evaluations[0].options | {"blind": False}
    refused = {"sample=10": "did you mean samples", "samples=many": "integer", "samples=0": "at least 1"}
    for setting, said in refused.items():
        with pytest.raises(UserError, match=said):
            asked.override([f"evaluations.transcript.options.{setting}"])
