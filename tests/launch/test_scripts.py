"""The shell scripts: help, bad input, setup and what happens to an interrupted Slurm job. Nothing here trains."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from processes import ROOT, environment, run

COMMANDS = ("quickstart", "test", "train_one_node", "train_hostfile", "train_slurm")


def script(name: str) -> str:
    return str(ROOT / "scripts" / f"{name}.sh")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_it_is_called(name, tmp_path):
    text = run(["bash", script(name), "--help"], timeout=20, cwd=tmp_path).output
    assert f"scripts/{name}.sh" in text
    assert "#" not in text.splitlines()[0] and "set -euo" not in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "50"], "unknown option"),
        (["--set"], "--set needs a value"),
        (["--output_dir"], "--output_dir needs a value"),
    ],
)
def test_quickstart_refuses_bad_options_at_once(arguments, message, tmp_path):
    finished = run(["bash", script("quickstart"), *arguments], timeout=20, cwd=tmp_path, code=2)
    assert finished.output.startswith(f"error: {message}")


@pytest.fixture
def project(tmp_path):
    """A copy of the scripts with a .venv whose python records what it is asked to do."""
    root = tmp_path / "a project"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, root / name)
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    recorder = f'if [[ $1 == -m ]]; then echo "$@" >>"{root}/calls"; else exec "{sys.executable}" "$@"; fi'
    (programs / "python").write_text(f"#!/usr/bin/env bash\n{recorder}\n")
    (programs / "deepspeed").write_text(f'#!/usr/bin/env bash\necho deepspeed "$@" >>"{root}/calls"\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    return root


def calls(project: Path) -> list[str]:
    return (project / "calls").read_text().splitlines()


def test_packages_are_installed_once_and_again_when_the_pins_change(project, tmp_path):
    command = ["bash", project / "scripts" / "test.sh", "tests/moe", "-x"]
    install, tests = "-m pip install --quiet --disable-pip-version-check --requirement", "-m pytest tests/moe -x"
    run(command, timeout=20, cwd=tmp_path)
    assert calls(project) == ["-m pip --version", f"{install} requirements.txt", f"{install} requirements-dev.txt", tests]
    stamp = (project / ".venv" / ".installed-requirements.txt").read_text().strip()
    assert stamp == hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()

    (project / "calls").unlink()
    run(command, timeout=20, cwd=tmp_path)
    assert calls(project) == ["-m pip --version", tests]

    (project / "calls").unlink()
    (project / "requirements.txt").write_text("torch==0.0.1\n")
    run(command, timeout=20, cwd=tmp_path)
    assert calls(project) == ["-m pip --version", f"{install} requirements.txt", tests]


def test_quickstart_passes_options_on_and_moves_an_earlier_run_aside(project, tmp_path):
    (project / "runs" / "digits").mkdir(parents=True)
    (project / "runs" / "digits" / "results.json").write_text("mine")
    command = ["bash", project / "scripts" / "quickstart.sh", "--set", "train.steps=5", "--set=model.size=S"]
    output = run(command, timeout=20, cwd=tmp_path).output
    sets = "--set train.ep_size=2 --set train.steps=5 --set model.size=S"
    plan, corpus, train, export, evaluate = calls(project)[2:]
    assert plan == f"-m imp_ds plan digits --gpus 2 {sets}"
    assert corpus == "-m imp_ds corpus digits data/digits"
    assert train.startswith("deepspeed --quiet --num_gpus 2 ")
    assert train.endswith(f"--module imp_ds train digits {sets} --output_dir runs/digits")
    assert export == "-m imp_ds export runs/digits runs/digits/model"
    assert evaluate == "-m imp_ds eval runs/digits/model --split test"
    [aside] = (project / "runs").iterdir()
    assert aside.name.startswith("digits.previous-") and (aside / "results.json").read_text() == "mine"
    assert f"moved to runs/{aside.name}" in output


def test_quickstart_takes_paths_from_where_it_is_called_and_moves_nothing_of_theirs(project, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "out" / "model").mkdir(parents=True)
    options = ["--set", "data.root=corpus", "--output_dir=out", "--deepspeed_config", "ds.json"]
    run(["bash", project / "scripts" / "quickstart.sh", *options], timeout=20, cwd=tmp_path)
    _, train, export, _ = calls(project)[2:]
    assert f"--set data.root={tmp_path}/corpus --deepspeed_config {tmp_path}/ds.json --output_dir {tmp_path}/out" in train
    assert export == f"-m imp_ds export {tmp_path}/out {tmp_path}/out/model"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_quickstart_stops_where_a_step_fails(project, tmp_path):
    (project / "runs" / "digits").mkdir(parents=True)
    (project / ".venv" / "bin" / "deepspeed").write_text("#!/usr/bin/env bash\nexit 7\n")
    run(["bash", project / "scripts" / "quickstart.sh"], timeout=20, cwd=tmp_path, code=7)
    assert not any("export" in call for call in calls(project))


def test_no_python_of_the_right_age_is_said_clearly(project):
    shutil.rmtree(project / ".venv")
    old = project / "python2"
    old.write_text('#!/usr/bin/env bash\n[[ $1 == --version ]] && echo "Python 2.7.18"\nexit 1\n')
    old.chmod(0o755)
    finished = run(["bash", project / "scripts" / "test.sh"], timeout=20, env=environment(PYTHON=str(old)), code=2)
    assert "no Python 3.11 or newer was found" in finished.output and "Python 2.7.18" in finished.output
    assert not (project / ".venv").exists()


def test_a_hostfile_that_is_missing_ends_the_launch(tmp_path):
    # deepspeed itself would train on this machine alone
    env = environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    finished = run(["bash", script("train_hostfile"), "absent", "digits_debug"], timeout=90, cwd=tmp_path, env=env, code=2)
    assert "the hostfile cannot be read" in finished.output


def slurm(folder: Path, srun: str, code: int, **variables: str) -> str:
    """Run train_slurm.sh with imitations of Slurm's commands; what it printed."""
    for name, text in {"srun": srun, "scontrol": 'echo "scontrol $@"'}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = environment(SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT), PATH=path, **variables)
    # Slurm runs a copy, from elsewhere
    copy = shutil.copy(script("train_slurm"), folder / "slurm_script")
    return run(["bash", copy, "digits"], timeout=20, cwd=folder, env=env, code=code).output


@pytest.mark.parametrize("restarts, options", [("", "digits"), ("0", "digits"), ("2", "digits --resume")])
def test_a_job_that_slurm_restarts_is_resumed(restarts, options, tmp_path):
    output = slurm(tmp_path, 'echo "$@"', 0, SLURM_RESTART_COUNT=restarts)
    assert output.strip().endswith(f"python -u -m imp_ds train {options}")


def test_a_job_puts_itself_back_into_the_queue_before_its_time_is_over(tmp_path):
    # the signal of --signal goes to the batch script, here the parent of srun; the ranks go on meanwhile
    output = slurm(tmp_path, "kill -USR1 $PPID; sleep 1; echo the ranks went on; exit 3", 3)
    lines = output.splitlines()
    assert "scontrol requeue 7" in lines and "the ranks went on" in lines


def test_outside_of_slurm_the_batch_script_says_how_it_is_started():
    finished = run(["bash", script("train_slurm"), "digits"], timeout=20, code=2)
    assert "sbatch scripts/train_slurm.sh digits" in finished.output
