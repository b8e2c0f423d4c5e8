"""A run in trackio, a local data base that `trackio show` shows, and in Weights & Biases, offline with WANDB_MODE=offline."""

import html
import os
from pathlib import Path
from uuid import uuid4

from imp_ds.train.recording.trackers.tracker import Tracker, run_id

PROJECT, STEP = "imp_ds", "step"


class Trackio(Tracker):
    """Writes where trackio does (TRACKIO_DIR), into the project of TRACKIO_PROJECT, or "imp_ds"."""

    def __init__(self, folder: Path, name: str, parameters: dict, start_step: int = 0):
        import trackio

        self.trackio = trackio
        own = run_id(folder, "trackio", f"{name}-{uuid4().hex[:8]}")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(project=project, name=own, config=parameters, resume="allow", embed=False)

    def scalars(self, step, values):
        self.trackio.log({tag: float(value) for tag, value in values.items()}, step=step)

    def text(self, tag, markdown, step=0):
        self.trackio.log({tag: self.trackio.Markdown(markdown)}, step=step)

    def picture(self, tag, picture_HW3, step=0):
        self.trackio.log({tag: self.trackio.Image(picture_HW3)}, step=step)

    def audio(self, tag, samples_N, rate, step=0):
        self.trackio.log({tag: self.trackio.Audio(samples_N, sample_rate=rate)}, step=step)

    def close(self):
        self.trackio.finish()


class Wandb(Tracker):
    """Into the project of WANDB_PROJECT, or "imp_ds"; its own files lie in `wandb/` of the run's folder.

    Curves are drawn over the value STEP: wandb's own count of steps only rises, but a run that is resumed goes back.
    """

    def __init__(self, folder: Path, name: str, parameters: dict, start_step: int = 0):
        import wandb

        self.wandb = wandb
        project, own = os.environ.get("WANDB_PROJECT", PROJECT), run_id(folder, "wandb", uuid4().hex[:12])
        self.run = wandb.init(
            project=project, id=own, name=name, resume="allow", dir=str(folder), config=parameters,
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self.run.define_metric(STEP, hidden=True)
        self.run.define_metric("*", step_metric=STEP)

    def scalars(self, step, values):
        self.run.log({**values, STEP: step})

    def text(self, tag, markdown, step=0):
        self.run.log({tag: self.wandb.Html(f"<pre>{html.escape(markdown)}</pre>"), STEP: step})

    def picture(self, tag, picture_HW3, step=0):
        self.run.log({tag: self.wandb.Image(picture_HW3), STEP: step})

    def audio(self, tag, samples_N, rate, step=0):
        self.run.log({tag: self.wandb.Audio(samples_N, sample_rate=rate), STEP: step})

    def hyperparameters(self, parameters, results, step):
        self.run.summary.update(results)

    def close(self):
        self.run.finish()
