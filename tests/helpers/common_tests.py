"""transformers' own tests of models, processors and tokenizers, of the very version that is installed.

The wheel has none; the source distribution has those that all models share. `module("test_modeling_common")` fetches it once with
pip into the user's cache (some ten seconds), and imports from it; where it cannot be had, the file that asks is skipped with the
reason. What is ours of those tests stands in tests/models beside them, and needs no network.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from pathlib import Path

import pytest
import transformers
from filelock import FileLock

PARAMETERIZED = "parameterized==0.9.0"  # the common tests import it
_AGAIN_AFTER = 3600.0  # seconds until a fetch that failed is tried again
_PACKAGE = "transformers_common_tests"
# what the common tests import though the source distribution lacks it: of other kinds of model, or from the repository's root
_ABSENT = {
    f"{_PACKAGE}.exporters.test_export": "class ExportTesterMixin: pass",
    f"{_PACKAGE}.generation.test_utils": "class GenerationTesterMixin: pass",
    "fetch_hub_objects_for_ci": "def url_to_local_path(url): return url",
}


def module(name: str) -> types.ModuleType:
    """The module of that name of transformers' tests. Skips the calling test file where the tests cannot be had."""
    folder, reason = _fetched()
    if reason is not None:
        pytest.skip(f"transformers' common tests cannot be had here: {reason}", allow_module_level=True)
    if _PACKAGE not in sys.modules:
        sys.path.append(str(folder / "packages"))
        _packages_of_our_own(folder)
    return importlib.import_module(f"{_PACKAGE}.{name}")


def _packages_of_our_own(folder: Path) -> None:
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(folder / "tests")]
    sys.modules[_PACKAGE] = package
    for name, source in _ABSENT.items():
        parent = name.rpartition(".")[0]
        if parent not in ("", _PACKAGE):
            sys.modules.setdefault(parent, types.ModuleType(parent)).__path__ = []
        found = types.ModuleType(name)
        exec(source, found.__dict__)
        sys.modules[name] = found


def _fetched() -> tuple[Path, str | None]:
    """The folder that holds tests/ and packages/, and why it does not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imp_ds" / "transformers_tests"
    folder, failed = cache / transformers.__version__, cache / f"{transformers.__version__}.failed"
    if folder.exists():
        return folder, None
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock"):
        if folder.exists():
            return folder, None
        if failed.exists() and time.time() - failed.stat().st_mtime < _AGAIN_AFTER:
            return folder, failed.read_text()
        try:
            with tempfile.TemporaryDirectory(dir=cache) as unfinished:
                _fetch(Path(unfinished) / "new")
                (Path(unfinished) / "new").rename(folder)
        except (subprocess.SubprocessError, OSError, tarfile.TarError) as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            failed.write_text(next((line for line in reversed(lines) if "ERROR" in line), lines[-1]))
            return folder, failed.read_text()
    return folder, None


def _fetch(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "15"]
    version = transformers.__version__
    for arguments in (
        ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", folder, f"transformers=={version}"],
        ["install", "--no-deps", "--target", folder / "packages", PARAMETERIZED],
    ):
        subprocess.run([*pip, *arguments], check=True, capture_output=True, text=True, timeout=240)
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.split("/")[1:2] == ["tests"]]
        tar.extractall(folder, members, filter="data")
    (folder / archive.name.removesuffix(".tar.gz") / "tests").rename(folder / "tests")
    archive.unlink()
