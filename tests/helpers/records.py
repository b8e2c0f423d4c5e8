"""Records of a run's steps as the trainer gives them to the monitor."""

import torch

from imp_ds.config import RunConfig, TrainSettings
from imp_ds.modalities.vision.view import VisionView
from imp_ds.moe.routing import RouterReport
from imp_ds.recipes import get_recipe
from imp_ds.train.recording.interval import StepRecord
from imp_ds.train.recording.monitor import Monitor


def make_run(**train) -> RunConfig:
    run = get_recipe("digits")
    run.task("film_speech_text").views.vision = VisionView(frames=8, height=64, width=64)  # what film_batch holds
    run.train = TrainSettings(**{**dict(steps=8, log_every=2), **train})
    return run


def report(first: float) -> RouterReport:
    values = 2 * first, 3 * first, [first, 1 - first], 0.125, first + 0.25
    return RouterReport(*map(torch.tensor, values))


def record(monitor: Monitor, step: int, task: str, loss: float, modalities=("vision", "text")) -> None:
    reports = {modality: [report(0.25 + 0.125 * i)] for i, modality in enumerate(modalities)}
    metrics = {"accuracy/vision_to_text": torch.tensor(0.5), "temperature/vision_text": torch.tensor(0.25)}
    values = {"loss": torch.tensor(loss), **metrics, "grad_norm": torch.tensor(float(step))}
    monitor.record_step(step, [StepRecord(task, values, reports, 32, 640, 0.5, 0.125)], step / 100)
