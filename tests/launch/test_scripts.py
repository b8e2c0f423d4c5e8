"""The shell scripts: help, bad input, setup and what happens to an interrupted job. Nothing here trains."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.processes import ROOT, environment, run

COMMANDS = ("quickstart", "test", "train_one_node", "train_hostfile", "train_slurm", "simulate_cluster")


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
        (["--resume"], "--resume needs a value"),
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
    install = "-m pip install --quiet --disable-pip-version-check --requirement"
    tests = "-m pytest -n 2 --dist loadfile --max-worker-restart 0 tests/moe -x"
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


@pytest.mark.parametrize("restarts", ["", "2"])
def test_a_job_always_finds_its_own_place(restarts, tmp_path):
    output = slurm(tmp_path, 'echo "$@"', 0, SLURM_RESTART_COUNT=restarts)
    assert output.strip().endswith("python -u -m imp_ds train --resume auto digits")


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_a_job_goes_back_into_the_queue_when_its_ranks_ask_for_it(code, tmp_path):
    output = slurm(tmp_path, f"exit {code}", code)
    assert ("scontrol requeue 7" in output) == (code == 75)


def test_slurm_signals_the_ranks_in_time():
    lines = Path(script("train_slurm")).read_text().splitlines()
    # without B: to the tasks of srun; what is written to the log is kept when the job comes back
    for line in ("--signal=USR1@120", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {line}" in lines


# stands for `deepspeed`: it starts launch.py, which starts the ranks, each in a process of its own, and none passes signals on
DEEPSPEED = """
import os, subprocess, sys
child = subprocess.run([sys.executable, sys.argv[1], "deepspeed.launcher.launch", sys.argv[2]])
sys.exit(child.returncode)
"""
LAUNCH_PY = """
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[2]]) for _ in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""
RANK = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
print('waiting', flush=True)
exit(75 if signal.sigwait({signal.SIGTERM, signal.SIGUSR1}) == signal.SIGUSR1 else 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_script_reaches_the_ranks_and_their_exit_code_comes_back(number, tmp_path):
    (tmp_path / "deepspeed.py").write_text(DEEPSPEED)
    (tmp_path / "launch.py").write_text(LAUNCH_PY)
    started = f'launch "{sys.executable}" deepspeed.py launch.py "{RANK}"'
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (tmp_path / "log").open("w+b") as log:
        child = subprocess.Popen(
            ["bash", "-c", f'source "{script("launch")}"; {started}'], cwd=tmp_path, env=environment(PATH=path), stdout=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 20
            while (tmp_path / "log").read_text().count("waiting") < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            child.send_signal(number)
            assert child.wait(20) == 75  # the ranks got SIGUSR1, whichever it was
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(5)


def test_outside_of_slurm_the_batch_script_says_how_it_is_started():
    finished = run(["bash", script("train_slurm"), "digits"], timeout=20, code=2)
    assert "sbatch scripts/train_slurm.sh digits" in finished.output
