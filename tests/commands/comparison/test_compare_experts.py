"""`compare-experts`: what each variant changes, which runs variants share, the paper's tables, and all of it with real runs."""

import json

import pytest
from PIL import Image

from helpers.ranks import Ranks, run_ranks
from helpers.ranks import command as run_command
from helpers.talking import make_run, write_rows
from imp_ds.commands.comparison.experts.jobs import plan_jobs
from imp_ds.commands.comparison.experts.paper import beside
from imp_ds.commands.comparison.experts.variants import DEFAULT, default_variants, varied
from imp_ds.commands.comparison.measure import Measure, Spread
from imp_ds.errors import UserError

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
    with pytest.raises(UserError, match=r"(?s)experts_4: the recipe has fewer slots.*base, image, speech.*identical\+experts_4"):
        varied(run, "experts_4")


def test_a_recipe_has_the_variants_that_it_can_have(run):
    assert default_variants(run) == [name for name in DEFAULT if name != "pretrained"]
    assert default_variants(with_slots(run)) == [name for name in DEFAULT if name not in ("experts_4", "experts_8")]
    refused = {"top_0": "unknown variant", "top_1+odd": "unknown variant", "pretrained": "no models that experts"}
    for variant, said in refused.items():
        with pytest.raises(UserError, match=said):
            varied(run, variant)
    with pytest.raises(UserError, match="no experts to vary"):
        varied(run.override(["model.num_experts=0"]), "top_1")


def test_equal_runs_are_trained_once(run, tmp_path):
    jobs, shares = plan_jobs(tmp_path / "out", run, [], 2, ["train.steps=7"])
    assert shares["top_2"] == shares["experts_4"] == shares["all"] == shares["identical"] == shares["no_balance"] == "recipe"
    kept = ["recipe", "balance", "top_1", "experts_2", "experts_8", "first_half", "second_half"]  # of two layers
    assert shares["interval"] == "second_half" and [job.variant for job in jobs] == [*kept, *kept]
    for job in jobs:
        assert (job.run().train.steps, job.run().train.seed, job.run().data.seed) == (7, job.seed, job.seed)
        assert job.folder == tmp_path / "out" / "runs" / job.name


def test_published_tables_stand_beside_ours():
    found = {name: {"mean": Spread(share, 0.01)} for name, share in {"top_2": 0.5, "top_1": 0.25, "balance+experts_8": 1}.items()}
    lines = beside([Measure("mean", "mean", "%", 100, 1)], found)
    assert lines[2] == "### Experts of a token (table 7)"
    assert "| variant | A-OKVQA | OK-VQA | RACE middle | RACE high | ours: mean, % |" in lines
    assert "| top_1 | 66.46 | 62.76 | 45.13 | 42.42 | 25.0 ± 1.0 |" in lines
    assert not any("table 9" in line for line in lines)  # one of its rows alone says nothing
    assert beside([], {"recipe": {}}) == []


@pytest.mark.distributed
def test_a_comparison_trains_and_tables_and_goes_on(tmp_path):
    """The runs are made by forks, which is quick; `compare-experts`, which would start a process for each, finds them done."""
    write_rows(tmp_path, ["one", "two", "three", "four", "five", "six", "seven", "eight"])
    run, out = make_run(tmp_path, num_experts=2, samples=3, max_new_tokens=2, blind=False, shuffled=False), tmp_path / "out"
    run = run.override(["train.steps=2", "data.workers=0"])
    file = run.save(tmp_path / "run.json")
    variants, settings = ["experts_2", "top_1", "recipe"], ["optimizer.peak_rate=0.01"]
    jobs, _ = plan_jobs(out, run, variants, 1, settings)
    for job in jobs:
        job.write()
    begun = [Ranks(run_command, *job.command()[3:], ranks=1, folder=tmp_path / job.name) for job in jobs]
    for ended in [one.wait(60) for one in begun]:
        assert ended.codes == [0], str(ended)
    words = ["compare-experts", out, "--recipe", file, "--seeds", 1]
    words += [word for name, values in (("--variant", variants), ("--set", settings)) for one in values for word in (name, one)]
    said = run_ranks(run_command, *words, ranks=1, folder=tmp_path / "logs").outputs[0]
    assert "2 of 2 runs are done already" in said and "wrote " in said
    table, page = json.loads((out / "table.json").read_text()), (out / "README.md").read_text()
    assert table["details"]["shared_runs"] == {"experts_2": "experts_2", "top_1": "top_1", "recipe": "experts_2"}
    two, one, shared = (table["variants"][name][0] for name in variants)
    assert two == shared and two["answers/mean"] == two["answers/talk/exact_match"] and two["answers/deviation"] == 0
    # a token of top_1 meets one expert less in each of two layers, three matrices of 32 x 64
    assert two["parameters/active"] - one["parameters/active"] == 2 * 3 * 32 * 64
    assert two["parameters/trained"] == one["parameters/trained"]
    assert "| top_1 |" in page and "2 steps" in page and "`recipe` is `experts_2`" in page and "Beside the paper" not in page
    assert Image.open(out / "comparison.png").width > 1000
    with pytest.raises(UserError, match="(?s)another comparison.*train.steps: 2 -> 3"):
        plan_jobs(out, run, variants, 1, [*settings, "train.steps=3"])
