"""`compare-experts`: what each variant changes, which runs variants share, the paper's tables, and all of it with real runs."""

import dataclasses
import json

import pytest
from PIL import Image

from helpers.ranks import Ranks, run_ranks
from helpers.ranks import command as run_command
from helpers.talking import export_talking, make_run, write_rows
from imp_ds.commands.comparison.experts.jobs import AskedJob, plan_jobs
from imp_ds.commands.comparison.experts.paper import TABLES, beside
from imp_ds.commands.comparison.experts.variants import PAPER, variants_of, varied
from imp_ds.commands.comparison.measure import Measure, Spread
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.adapters.dense import trained_parameters
from imp_ds.families.uni_moe.settings import LoraSettings

LORA = LoraSettings(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"])
SLOTS = {"base": "runs/base/model", "image": "runs/image/model", "speech": "runs/speech/model"}


@pytest.fixture
def run(tmp_path):
    """Two layers, four experts of which a token takes two, in every layer."""
    return make_run(tmp_path, num_experts=4)


def with_slots(run):
    return run.model_copy(update={"model": run.model.model_copy(update={"experts": SLOTS, "num_experts": 0})})


def changes(run, variant: str) -> dict:
    """What a variant changes of the model."""
    before, after = (one.model.model_dump() for one in (run, varied(run, variant)))
    return {name: value for name, value in after.items() if value != before[name]}


def test_each_variant_changes_its_one_thing(run):
    assert changes(run, "recipe") == changes(run, "experts_4") == changes(run, "top_2") == changes(run, "all") == {}
    assert changes(run, "top_1") == {"experts_per_token": 1} and changes(run, "balance") == {"router_balance": 0.01}
    assert changes(run, "experts_8") == {"num_experts": 8}
    assert changes(run, "experts_1") == {"num_experts": 1, "experts_per_token": 1}
    assert changes(run, "first_half") == {"moe_layers": "first:1"} and changes(run, "second_half") == {"moe_layers": "last:1"}
    assert changes(run, "experts_8+balance") == {"num_experts": 8, "router_balance": 0.01}
    own = run.override(["model.router_balance=0.3"])
    assert changes(own, "balance") == {} and changes(own, "no_balance") == {"router_balance": 0.0}


def test_slots_are_kept_taken_away_or_cut(run):
    run = with_slots(run)
    assert changes(run, "pretrained") == {}
    assert changes(run, "identical") == {"experts": {}, "num_experts": 3}
    assert changes(run, "experts_2") == {"experts": {name: SLOTS[name] for name in ("base", "image")}}
    assert changes(run, "identical+experts_8") == {"experts": {}, "num_experts": 8}
    # the release made eight experts of five models: slots again from the first on
    five = SLOTS | {"base_2": SLOTS["base"], "image_2": SLOTS["image"]}
    assert changes(run, "experts_5") == {"experts": five}


def test_a_recipe_has_the_variants_that_it_can_have(run, tmp_path):
    assert variants_of(run, []) == ["recipe", *PAPER, "dense"]
    slots = {name: str(tmp_path / name) for name in SLOTS}
    for name, towers in (("image", {"image": "vision"}), ("speech", dict.fromkeys(run.model.towers, "vision"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"towers": towers}))
    run = run.model_copy(update={"model": run.model.model_copy(update={"experts": slots, "num_experts": 0, "lora": LORA})})
    gain = ["pretrained", "identical", "dense", "dense_wide", "specialist_speech"]  # image does not read audio, base nothing
    assert variants_of(run, ["gain"]) == gain and variants_of(run, ["paper", "top_3"]) == ["pretrained", *PAPER, "top_3"]
    refused = {"top_0": "unknown variant", "top_1+odd": "unknown variant", "specialist_odd": "no such slot"}
    refused |= {"specialist_image": r"(?s)does not read all.*no video, audio.*speech", "dense+top_1": "no experts to vary"}
    for variant, said in refused.items():
        with pytest.raises(UserError, match=said):
            varied(run, variant)
    with pytest.raises(UserError, match="no models that experts begin as"):
        varied(make_run(tmp_path, num_experts=2), "pretrained")
    with pytest.raises(UserError, match="no LoRA whose rank"):
        varied(make_run(tmp_path, num_experts=2), "dense_wide")


def test_every_row_of_the_published_tables_is_a_variant(run):
    variants = {frozenset(name.split("+")) for name in variants_of(run, ["paper"])}
    assert {frozenset(name.split("+")) for table in TABLES for name in table.rows} <= variants


def with_lora(run, trainable: list[str], **model):
    model = run.model.model_copy(update={"lora": LORA} | model)
    return run.model_copy(update={"model": model, "train": run.train.model_copy(update={"trainable": trainable})})


def test_a_dense_model_is_trained_as_the_experts_are(run):
    trained = ["*.lora.*", "uni_moe.connectors.*", "uni_moe.language_model.*.router.weight"]
    dense = varied(with_lora(run, trained), "dense")
    assert (dense.model.num_experts, dense.model.lora.target_parameters, dense.model.lora.r) == (0, [], 4)
    assert dense.model.lora.target_modules == ["q_proj", "gate_proj", "up_proj"]  # of w1 and w3 alone
    assert dense.train.trainable == trained[:2]
    last = varied(with_lora(run, trained, moe_layers="last:1"), "dense")
    layer = "model.layers.1.mlp."
    assert last.model.lora.target_modules == ["q_proj", f"{layer}gate_proj", f"{layer}up_proj"]
    # experts that are trained as a whole: the feed-forwards that they are copies of
    whole = run.model_copy(update={"train": run.train.model_copy(update={"trainable": ["*.experts.w2", "*norm*"]})})
    names = [f"uni_moe.language_model.model.layers.{n}.mlp.down_proj.weight" for n in (0, 1)]
    assert varied(whole, "dense").train.trainable == ["*norm*", *names]


def test_the_wide_rank_trains_as_many_parameters(run):
    """Two layers of width 32, experts of 64, four of them, r = 4. Of the mixture: q_proj (32 + 32) * 4 in each layer, two stacks
    of 4 * (32 + 64) * 4, and a router of 32 * 4: 2 * (256 + 2 * 1536 + 128) = 6912. Dense: each rank is 2 * (64 + 2 * 96) = 512
    parameters, so 13.5 ranks, of which Python's rounding makes 14: the even one."""
    mixture = with_lora(run, ["*.lora.*", "uni_moe.language_model.*.router.weight"])
    assert trained_parameters(mixture) == 6912
    wide = varied(mixture, "dense_wide")
    assert (wide.model.lora.r, wide.model.lora.lora_alpha) == (14, 28) and trained_parameters(wide) == 14 * 512


def test_equal_runs_are_trained_once(run, tmp_path):
    jobs, shares = plan_jobs(tmp_path / "out", run, [], 2, ["train.steps=7"])
    assert shares["top_2"] == shares["experts_4"] == shares["all"] == shares["identical"] == shares["no_balance"] == "recipe"
    kept = ["recipe", "top_1", "experts_1", "experts_2", "first_half", "second_half", "balance", "experts_8", "experts_8+balance"]
    assert shares["interval"] == "second_half" and shares["identical+balance"] == "balance"  # of two layers
    assert [job.variant for job in jobs] == [*kept, "dense"] * 2
    for job in jobs:
        assert not job.run().evaluations[0].options["blind"] and not job.run().evaluations[0].options["shuffled"]
        assert (job.run().train.steps, job.run().train.seed, job.run().data.seed) == (7, job.seed, job.seed)
        assert job.folder == tmp_path / "out" / "runs" / job.name


def test_the_file_of_a_run_is_there_as_a_whole_or_not(run, tmp_path, monkeypatch):
    job = plan_jobs(tmp_path / "out", run, ["recipe"], 1, [])[0][0]
    job.write()
    before = (tmp_path / "out" / "recipes" / "recipe_0.json").read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("imp_ds.written_files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(job, made=run.override(["train.steps=9"])).write()
    assert (tmp_path / "out" / "recipes" / "recipe_0.json").read_text() == before


def test_published_tables_stand_beside_ours():
    found = {name: {"mean": Spread(share, 0.01)} for name, share in {"top_2": 0.5, "top_1": 0.25, "balance+experts_8": 1}.items()}
    lines = beside([Measure("mean", "mean", "%", 100, 1)], found)
    assert lines[2] == "### Experts of a token (table 7)"
    assert "| variant | A-OKVQA | OK-VQA | RACE middle | RACE high | ours: mean, % |" in lines
    assert "| top_1 | 66.46 | 62.76 | 45.13 | 42.42 | 25.0 ± 1.0 |" in lines
    assert not any("table 9" in line for line in lines)  # one of its rows alone says nothing
    assert beside([], {"recipe": {}}) == []


@pytest.mark.distributed
def test_a_comparison_trains_and_asks_and_tables_and_goes_on(tmp_path):
    """What is trained and asked is by forks, which is quick; `compare-experts`, which would start processes, finds it done."""
    (tmp_path / "specialist").mkdir()
    folder = export_talking(tmp_path / "specialist")[0]
    write_rows(tmp_path, ["one", "two", "three", "four", "five", "six", "seven", "eight"])
    run, out = make_run(tmp_path, samples=3, max_new_tokens=2), tmp_path / "out"
    experts = {"base": str(folder), "other": str(folder)}
    run = run.override([f"model.language_model={folder}", f"model.experts={json.dumps(experts)}", "train.steps=2"])
    file = run.override(["data.workers=0"]).save(tmp_path / "run.json")
    run = RunConfig.load(file)
    variants, settings = ["experts_2", "recipe", "dense", "specialist_other"], ["optimizer.peak_rate=0.01"]
    jobs, _ = plan_jobs(out, run, variants, 1, settings)
    assert [job.variant for job in jobs] == ["experts_2", "dense", "specialist_other"]
    for job in jobs:
        job.write()
    begun = [Ranks(run_command, *job.command()[3:], ranks=1, folder=tmp_path / job.name) for job in jobs]
    for ended in [one.wait(100) for one in begun]:
        assert ended.codes == [0], str(ended)
    words = ["compare-experts", out, "--recipe", file, "--seeds", 1]
    words += [word for name, values in (("--variant", variants), ("--set", settings)) for one in values for word in (name, one)]
    said = run_ranks(run_command, *words, ranks=1, folder=tmp_path / "logs").outputs[0]
    assert "3 of 3 runs are done already" in said and "wrote " in said
    table, page = json.loads((out / "table.json").read_text()), (out / "README.md").read_text()
    assert table["details"]["shared_runs"]["recipe"] == "experts_2"
    two, shared, dense, alone = (table["variants"][name][0] for name in variants)
    assert two == shared and two["answers/mean"] == two["answers/talk/exact_match"] and two["answers/deviation"] == 0
    # a token of the dense model meets one expert less in each of two layers, three matrices of 32 x 64, and no router, 32 x 2
    assert two["parameters/active"] - dense["parameters/active"] == 2 * (3 * 32 * 64 + 32 * 2)
    asked = json.loads((out / "runs" / "specialist_other_0" / "results.json").read_text())
    assert alone["answers/mean"] == asked["answers/talk/exact_match"] and alone["parameters/trained"] == 0
    assert alone["parameters/active"] == dense["parameters/active"] and "Specialists are there before" in page
    assert "| dense |" in page and "2 steps" in page and "`recipe` is `experts_2`" in page and "Beside the paper" not in page
    assert Image.open(out / "comparison.png").width > 1000
    with pytest.raises(UserError, match="(?s)another comparison.*train.steps: 2 -> 3"):
        plan_jobs(out, run, variants, 1, [*settings, "train.steps=3"])
    with pytest.raises(UserError, match="(?s)another comparison.*specialist_other_0.*train.steps: 2 -> 4"):
        dataclasses.replace(jobs[-1], made=jobs[-1].made.override(["train.steps=4"])).check()
    assert sum(isinstance(job, AskedJob) for job in plan_jobs(out, run, variants, 2, settings)[0]) == 1  # of all seeds
    with pytest.raises(UserError, match="nothing is trained"):
        plan_jobs(out, run, ["specialist_other"], 1, settings)
