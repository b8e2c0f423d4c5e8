"""All trackers of a run as one, of which a broken one never stops training; and which there are."""

import importlib.util
import sys
from pathlib import Path

from imp_ds.errors import UserError
from imp_ds.terminal.printable import printable
from imp_ds.train.recording.trackers.packages import Trackio, Wandb
from imp_ds.train.recording.trackers.tensorboard import TensorBoard
from imp_ds.train.recording.trackers.tracker import Tracker

# name in train.report_to -> how it is opened: (the run's folder, its name, what distinguishes it, steps done before)
TRACKERS = {
    "tensorboard": lambda folder, name, parameters, start_step: TensorBoard(folder / "tensorboard", start_step),
    "trackio": Trackio,
    "wandb": Wandb,
}


def check_installed(report_to: list[str]) -> None:
    """Raise UserError for trackers whose packages are not installed."""
    missing = [name for name in report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            "train.report_to names trackers that are not installed", got=", ".join(missing), allowed=", ".join(TRACKERS),
            fix=f"pip install {' '.join(missing)}, or --set 'train.report_to=[\"tensorboard\"]'",
        )  # fmt: skip


class Board:
    """Has every method of a Tracker: each tracker of `report_to` gets what it is called with, in this order.

    A tracker that fails, at its start too, is reported once on standard error; the others and training go on.
    """

    def __init__(self, report_to: list[str], folder: Path, name: str, parameters: dict, start_step: int = 0):
        self._failed: set[str] = set()
        self._trackers: dict[str, Tracker] = {}
        for kind in dict.fromkeys(report_to):
            opened = self._tried(kind, lambda kind=kind: TRACKERS[kind](folder, name, parameters, start_step))
            if opened is not None:
                self._trackers[kind] = opened

    def __getattr__(self, method: str):
        if not callable(getattr(Tracker, method, None)):
            raise AttributeError(method)

        def call(*arguments, **named) -> None:
            for kind, tracker in self._trackers.items():
                self._tried(kind, lambda tracker=tracker: getattr(tracker, method)(*arguments, **named))

        return call

    def _tried(self, kind: str, function):
        try:
            return function()
        except Exception as error:  # a tracker may raise anything: a lost connection, a full disk, a fault of its own
            if kind not in self._failed:
                self._failed.add(kind)
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"{kind} fails, and training goes on without: {printable(reason)}", file=sys.stderr, flush=True)
            return None
