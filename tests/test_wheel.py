"""The wheel: everything that training needs is in it, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_module_and_deepspeed_configuration(tmp_path):
    for name in ("imp_ds", "ds_configs"):
        shutil.copytree(ROOT / name, tmp_path / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / "clone" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    command.append(tmp_path / "clone")
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        entry = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "imp_ds").rglob("*.py")}
    assert held == modules | {f"imp_ds/ds_configs/{path.name}" for path in (ROOT / "ds_configs").glob("*.json")}
    assert "imp_ds = imp_ds.__main__:main" in entry
