"""What a run's folder bears: damage of its files, two runs at a time, and how many checkpoints stay."""

import hashlib
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from helpers.plain_engine import make_engine
from imp_ds.config import FILE_NAME
from imp_ds.errors import UserError
from imp_ds.recipes import get_recipe
from imp_ds.train import checkpoint, run_folder
from imp_ds.train.checkpoint import files
from imp_ds.train.checkpoint.publish import prune
from imp_ds.train.processor import hashes, load_processor
from imp_ds.train.run_lock import RunLock
from imp_ds.train.trained_run import open_run
from imp_ds.written_files import write_file


@pytest.mark.parametrize("keep", range(1, 21))
def test_as_many_checkpoints_stay_as_are_asked_for(keep, tmp_path):
    for step in range(1, 26):  # as training does: one more, then what is too much goes
        (tmp_path / files.folder_name(step)).mkdir()
        prune(tmp_path / files.folder_name(step), keep, milestone_every=10)
        left = [files.step_of(path) for path in files.published(tmp_path)]
        assert left == sorted({*range(max(1, step - keep + 1), step + 1), *range(10, step + 1, 10)})


def _hold(folder: Path, says) -> None:
    lock = RunLock(folder)  # noqa: F841  held
    says.send("held")
    says.recv()


def test_a_second_run_learns_who_has_the_folder_until_its_process_ends(tmp_path):
    spawning = multiprocessing.get_context("fork")
    mine, its = spawning.Pipe()
    child = spawning.Process(target=_hold, args=(tmp_path, its))
    child.start()
    assert mine.recv() == "held"
    with pytest.raises(UserError, match=f"process {child.pid} on .* since 20") as refused:
        RunLock(tmp_path)
    assert "--output_dir" in str(refused.value)
    child.kill()  # no chance to tidy up
    child.join(10)
    RunLock(tmp_path)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_file(tmp_path / "run_config.json", "before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_file(path, "after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run with checkpoints of the steps 1 and 2 and a file for a processor."""
    folder, run = tmp_path_factory.mktemp("trained"), get_recipe("digits_debug")
    (folder / "processor").mkdir()
    (folder / "processor" / "processor_config.json").write_text('{"mean": 0.5}')
    run.save(folder / FILE_NAME)
    for step in (1, 2):
        state = {"step": step, "adam_steps": step, "run": run.model_dump(mode="json"), "processor": hashes(folder)}
        checkpoint.save(make_engine(100), folder, step, state, keep=2)
    return folder


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


DEEP = b'{"a":' * 100_000
DAMAGE = [DEEP, b"", b"[]", b"\xff\xfe", b"{", b"null"]


@pytest.mark.parametrize("content", [*DAMAGE, None])
def test_a_configuration_that_is_lost_is_restored_from_a_checkpoint(content, copy, capsys):
    config = copy / FILE_NAME
    before = config.read_bytes()
    config.unlink() if content is None else config.write_bytes(content)
    run_folder.claim(copy, get_recipe("digits_debug"), resume=True)
    assert config.read_bytes() == before
    assert "step_00000002 is taken" in capsys.readouterr().out


def forge(folder: Path, name: str, content: bytes) -> None:
    """Damage that the manifest knows nothing against."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / files.MANIFEST).read_text())
    manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / files.MANIFEST).write_text(json.dumps(manifest))


INDEXES = [b'{"w": 1}', b'{"w": {"shape": [2], "parts": [["0", 2, "x"]]}}', b'{"w": {"shape": [2], "parts": [[0, 2, "../x"]]}}']


@pytest.mark.parametrize(
    "name, content",
    [(files.MANIFEST, content) for content in [*DAMAGE, b'{"state.json": 3}', b'{"state.json": {"size": "x"}}']]
    + [(files.STATE, content) for content in [*DAMAGE, b'{"step": 1}', b'{"step": 2, "guard": 7}', b'{"step": "2"}']]
    + [(files.INDEX, content) for content in [DEEP, b"[]", b"\xff", *INDEXES]],
)
def test_a_damaged_checkpoint_is_passed_over(name, content, copy):
    newest, warned = copy / checkpoint.FOLDER / "step_00000002", []
    (newest / name).write_bytes(content) if name == files.MANIFEST else forge(newest, name, content)
    assert checkpoint.newest(copy, warned.append) == newest.with_name("step_00000001")
    assert len(warned) == 1 and "step_00000002" in warned[0]


def test_a_checkpoint_under_another_name_is_passed_over(copy):
    (copy / checkpoint.FOLDER / "step_00000002").rename(copy / checkpoint.FOLDER / "step_00000009")
    warned = []
    assert checkpoint.newest(copy, warned.append).name == "step_00000001" and "not of the step" in warned[0]


@pytest.mark.parametrize("content", [b'{"mean": 0.6}', None, *DAMAGE])
def test_another_processor_than_the_checkpoint_knows_is_refused(content, copy):
    path = copy / "processor" / "processor_config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match="processor_config.json (was changed|is missing)"):
        open_run(copy)


def test_a_processor_that_is_damaged_before_the_first_checkpoint_is_one_message(copy):
    with pytest.raises(UserError, match="the processor of the run cannot be loaded"):
        load_processor(get_recipe("digits"), copy)
