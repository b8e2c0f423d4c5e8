"""What a comparison is made of: which runs, how each is commanded, what counts as done, and what is refused."""

import json
from pathlib import Path

import pytest

from imp_ds.commands.comparison.jobs import INTERFERENCE, WEIGHTS, RouterJob, plan_jobs
from imp_ds.errors import UserError
from imp_ds.recipes.routers import ROUTERS

DATA = Path("some/digits")


def plan(out: Path, **changes) -> list[RouterJob]:
    return plan_jobs(out, **{**dict(routers=[], seeds=2, data=DATA, steps=7, samples=3, settings=[]), **changes})


def test_every_router_has_a_run_from_every_seed(tmp_path):
    jobs = plan(tmp_path, settings=["tasks.image_digit.batch_size=4"])
    assert [job.name for job in jobs] == [f"{router}_{seed}" for seed in (0, 1) for router in ROUTERS]
    for job in jobs:
        run = job.run()
        assert (run.data.seed, run.train.seed, run.train.steps) == (job.seed, job.seed, 7)
        assert (run.data.root, run.task("image_digit").batch_size) == (str(DATA), 4)
        assert job.folder == tmp_path / "runs" / job.name and job.log == tmp_path / "logs" / f"{job.name}.log"


def test_the_runs_differ_in_the_gate_alone(tmp_path):
    runs = {job.variant: job.run() for job in plan(tmp_path, seeds=1)}
    for router, run in runs.items():
        assert run.model.gate == (None if router == "dense" else router)
        same = run.model_copy(update={"name": "", "model": None})
        assert same == runs["dense"].model_copy(update={"name": "", "model": None})
    shape = {"num_experts", "experts_per_token", "moe_layers", "conditional_linears", "router_noise"}
    sparse = [run.model.model_dump(include=shape) for router, run in runs.items() if router != "dense"]
    assert all(one == sparse[0] for one in sparse)


def test_some_routers_come_in_the_order_of_all(tmp_path):
    assert [job.variant for job in plan(tmp_path, routers=["task", "dense"], seeds=1)] == ["dense", "task"]


def test_a_job_is_trained_then_measured_then_done(tmp_path):
    job = plan(tmp_path, routers=["attribute"], seeds=1)[0]
    train = job.command()
    assert train[1:5] == ["-m", "imp_ds", "train", "routers_attribute"] and train[-2:] == ["--resume", "auto"]
    assert "--set=train.steps=7" in train and "--set=data.seed=0" in train and str(job.folder) in train
    job.folder.mkdir(parents=True)
    (job.folder / "results.json").write_text("{}")
    # after 7 // 3 steps, of which there is a checkpoint
    assert {"--set=train.save_every=2", "--set=train.milestone_every=2"} <= set(train)
    assert job.command()[3:] == ["interference", str(job.folder), "--step", "2", "--weight", WEIGHTS, "--samples", "3"]
    (job.folder / INTERFERENCE).write_text("{}")
    assert job.command() is None


def test_progress_is_read_from_what_a_run_writes(tmp_path):
    job = plan(tmp_path, routers=["dense"], seeds=1)[0]
    assert job.steps_done() == 0
    job.folder.mkdir(parents=True)
    lines = [{"kind": "train", "step": 2}, {"kind": "train", "step": 5}, {"kind": "evaluation", "step": 5}]
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert job.steps_done() == 5
    (job.folder / "metrics.jsonl").write_text('{"kind": "tr')
    assert job.steps_done() == 0


def test_a_folder_of_another_comparison_is_refused(tmp_path):
    job = plan(tmp_path, routers=["dense"], seeds=1)[0]
    job.folder.mkdir(parents=True)
    job.run().save(job.folder)
    assert plan(tmp_path, routers=["dense"], seeds=1) == [job]  # the same one is not
    with pytest.raises(UserError, match=r"another comparison(.|\n)*train.steps: 7 -> 8"):
        plan(tmp_path, routers=["dense"], seeds=1, steps=8)
    (job.folder / INTERFERENCE).write_text('{"samples": 3}')
    assert plan(tmp_path, routers=["dense"], seeds=1) == [job]
    with pytest.raises(UserError, match="samples: 3 -> 5"):
        plan(tmp_path, routers=["dense"], seeds=1, samples=5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(routers=["dense", "tokens"]), r"unknown router\n  got: +tokens\n  allowed: dense, token, context"),
        (dict(settings=["train.stes=3"]), "did you mean steps"),
        (dict(settings=["model.conditional_linears=[rope]"]), "conditional_linears"),
    ],
)
def test_what_cannot_be_compared_is_reported_before_anything_is_made(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        plan(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
