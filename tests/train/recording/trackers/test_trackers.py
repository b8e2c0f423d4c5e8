"""The trackers of a run: what each is called with, under which name it goes on, and that none of them stops training.

trackio and wandb stand in their own modules where they are installed; here small modules take their place.
"""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from imp_ds.errors import UserError
from imp_ds.train.recording.trackers.board import TRACKERS, Board, check_installed
from imp_ds.train.recording.trackers.tracker import IDS, Tracker

PICTURE = np.zeros((4, 4, 3), np.uint8)
PARAMETERS = {"train.steps": 10}


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """What is called of `trackio` and `wandb`, in order."""
    found = []

    def noted(name):
        return lambda *arguments, **named: found.append((name, arguments, named))

    shown = {kind: lambda *given, kind=kind, **named: (kind, *given) for kind in ("Image", "Audio", "Markdown", "Html")}
    trackio = ModuleType("trackio")
    vars(trackio).update(init=noted("init"), log=noted("log"), finish=noted("finish"), **shown)
    run = SimpleNamespace(**{name: noted(name) for name in ("log", "finish", "define_metric")})
    run.summary = SimpleNamespace(update=noted("end"))
    wandb = ModuleType("wandb")
    init = lambda **named: found.append(("init", (), named)) or run  # noqa: E731
    vars(wandb).update(init=init, Settings=lambda **named: named, **shown)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return found


def watched(kind: str, folder) -> None:
    board = Board([kind], folder, "digits", PARAMETERS)
    board.scalars(5, {"train/a/loss": 1.5})
    board.picture("samples/a", PICTURE)
    board.hyperparameters(PARAMETERS, {"final/top1": 0.5}, 10)
    board.close()


def test_trackio_gets_values_at_their_steps(calls, tmp_path):
    watched("trackio", tmp_path)
    (_, _, begun), first, picture, last, end = calls
    assert begun["project"] == "imp_ds" and begun["name"].startswith("digits-") and begun["resume"] == "allow"
    assert begun["config"] == PARAMETERS
    assert first == ("log", ({"train/a/loss": 1.5},), {"step": 5})
    assert picture[1][0]["samples/a"][0] == "Image" and picture[2] == {"step": 0}
    assert last == ("log", ({"final/top1": 0.5},), {"step": 10})
    assert end[0] == "finish"


def test_wandb_draws_over_the_steps_of_the_run(calls, tmp_path):
    watched("wandb", tmp_path)
    names = [name for name, _, _ in calls]
    assert names == ["init", "define_metric", "define_metric", "log", "log", "end", "finish"]
    assert calls[0][2]["resume"] == "allow" and calls[0][2]["name"] == "digits" and calls[0][2]["dir"] == str(tmp_path)
    assert calls[2][1:] == (("*",), {"step_metric": "step"})
    assert calls[3][1] == ({"train/a/loss": 1.5, "step": 5},)
    assert calls[5][1] == ({"final/top1": 0.5},)


@pytest.mark.parametrize(("kind", "named"), [("trackio", "name"), ("wandb", "id")])
def test_a_run_goes_on_under_its_name(calls, tmp_path, kind, named):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        Board([kind], folder, "digits", PARAMETERS, start_step=4)
    first, again, other = [of[named] for name, _, of in calls if name == "init"]
    assert first == again != other
    assert json.loads((tmp_path / "a" / IDS).read_text()) == {kind: first}


def test_a_failing_tracker_is_reported_once_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    class Broken(Tracker):
        def scalars(self, step, values):
            raise ConnectionError("the server is gone\nfar away")

    class Kept(Tracker):
        points = []

        def scalars(self, step, values):
            self.points.append(step)

    def refused(*arguments):
        raise RuntimeError("no key")

    monkeypatch.setitem(TRACKERS, "wandb", lambda *arguments: Broken())
    monkeypatch.setitem(TRACKERS, "trackio", refused)
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda *arguments: Kept())
    board = Board(["trackio", "wandb", "tensorboard", "tensorboard"], tmp_path, "a", {})
    for step in (1, 2):
        board.scalars(step, {"x": 0.0})
        board.text("x", "nothing of it is asked")
    assert Kept.points == [1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "trackio fails, and training goes on without: RuntimeError: no key",
        "wandb fails, and training goes on without: ConnectionError: the server is gone",
    ]


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else name)
    check_installed(["tensorboard", "wandb"])
    with pytest.raises(UserError, match="(?s)not installed.*trackio.*pip install trackio"):
        check_installed(["tensorboard", "trackio"])


def test_what_no_tracker_does_is_no_method(tmp_path):
    with pytest.raises(AttributeError):
        Board([], tmp_path, "a", {}).picures


def test_a_real_trackio_keeps_one_run(monkeypatch, tmp_path):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for start in (0, 4):
        board = Board(["trackio"], tmp_path, "digits", PARAMETERS, start)
        board.scalars(start + 1, {"train/a/loss": 1.0})
        board.close()
    from trackio import Api

    (run,) = Api().runs("imp_ds")
    assert run.name == json.loads((tmp_path / IDS).read_text())["trackio"]
