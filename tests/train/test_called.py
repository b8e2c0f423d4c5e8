"""`from imp_ds import train`: a program trains by a call, in one process, and has what the command line has."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
from imp_ds import get_recipe, train
run = get_recipe("digits_debug").override(["data.root={root}", "data.workers=0", "train.steps=1", "evaluations=[]",
    "tasks.0.batch_size=4"])
run.tasks = run.tasks[:1]
train(run, "{out}")
"""


def test_a_program_trains_by_a_call(tmp_path):
    from imp_ds.data.digits import build

    build(tmp_path / "digits", 0, scale=0.02)
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    code = CODE.format(root=tmp_path / "digits", out=tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 1/1" in done.stdout and (tmp_path / "run" / "checkpoints" / "step_00000001").is_dir()
