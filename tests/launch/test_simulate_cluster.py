"""The simulated cluster: its network, its manners, and how it compares runs. Its scenes with training are run by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.processes import ROOT, environment, run

SCRIPT = ROOT / "scripts" / "simulate_cluster.sh"


def on_path(*first: Path) -> dict[str, str]:
    folders = [*map(str, first), str(Path(sys.executable).parent), os.environ["PATH"]]
    return environment(PATH=os.pathsep.join(folders))


def namespaces() -> set[str]:
    """Those of simulations that exist now."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=10, check=False).stdout
    return {line.split()[0] for line in listed.splitlines() if line.startswith("imp_ds-")}


def skip_if_not_permitted(code: int, output: str) -> None:
    """Told by the script itself: exit code 2, and what it lacks."""
    if code == 2 and any(part in output for part in ("need root", "a program is missing", "not permitted here")):
        pytest.skip(output.splitlines()[0])


def test_two_machines_see_each_other_until_a_cable_is_pulled():
    finished = run(["bash", SCRIPT, "wire"], timeout=60, env=on_path(), code=None)
    skip_if_not_permitted(finished.code, finished.output)
    assert finished.code == 0 and finished.output.startswith("ok   wire"), str(finished)


def test_nothing_is_left_of_it_when_it_is_interrupted(tmp_path):
    log = tmp_path / "log"
    with log.open("w") as output:
        script = subprocess.Popen(["bash", SCRIPT, "clean"], env=on_path(), stdout=output, stderr=output, start_new_session=True)
    mine = {f"imp_ds-{script.pid}-{name}" for name in ("node0", "node1", "switch")}
    try:
        deadline = time.monotonic() + 20
        while not mine <= namespaces():
            if script.poll() is not None:
                skip_if_not_permitted(script.returncode, log.read_text())
            assert script.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        script.terminate()
        assert script.wait(60) == 130, log.read_text()
        assert not mine & namespaces()
    finally:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
            script.wait(10)


@pytest.mark.parametrize(
    "program, text, message",
    [
        ("id", "echo 1000", "error: network namespaces need root"),
        ("ip", "echo 'mount failed: Operation not permitted' >&2; exit 1", "got:     mount failed: Operation not permitted"),
    ],
)
def test_where_it_cannot_run_it_says_why(program, text, message, tmp_path):
    fakes = {"id": "echo 0", program: text}
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    finished = run(["bash", SCRIPT, "wire"], timeout=30, env=on_path(tmp_path), code=2)
    assert message in finished.output and "fix:" in finished.output


def test_scenes_have_names():
    assert "allowed: wire clean blip" in run(["bash", SCRIPT, "fire"], timeout=30, env=on_path(), code=2).output
    assert "scripts/simulate_cluster.sh [SCENE ...]" in run(["bash", SCRIPT, "--help"], timeout=30, env=on_path()).output


def metrics(path: Path, losses: dict[int, float]) -> Path:
    records = [{"kind": "evaluation", "step": 1, "results": {}}]
    records += [{"kind": "train", "step": step, "tasks": {"a": {"loss": loss, "grad_norm": 1}}} for step, loss in losses.items()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    "losses, code, said",
    [
        ({1: 0.1, 2: 0.3}, 0, "2 steps with the same losses"),
        ({1: 0.1, 2: 0.1 + 0.2}, 1, "step 2: losses {'a': 0.3} and {'a': 0.30000000000000004}"),  # one bit apart
        ({1: 0.1}, 1, "the second run did not record each of 2 steps once"),
        ({2: 0.3, 1: 0.1}, 1, "the second run did not record each of 2 steps once"),
    ],
)
def test_losses_are_compared_bit_for_bit(losses, code, said, tmp_path):
    first, second = metrics(tmp_path / "first", {1: 0.1, 2: 0.3}), metrics(tmp_path / "second", losses)
    finished = run([sys.executable, ROOT / "scripts" / "same_losses.py", first, second, "2"], timeout=30, code=code)
    assert said in finished.output
