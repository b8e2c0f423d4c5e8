"""The record of a run, on rank 0: curves and samples for its trackers, metrics.jsonl, progress, and the picture of the results.

metrics.jsonl holds one JSON object a line: {"kind": "train", "step", ...} for each log interval (`Interval.summary`) and
{"kind": "evaluation", "step", "split", "results", "metrics", "usage"} for each evaluation: values by flat names, and of each
name its unit, which way it is better, and where it is shown. Values that are not finite are null there.
"""

import math
import resource
import sys
from pathlib import Path

import torch

from imp_ds.evaluation.interference import Interference
from imp_ds.evaluation.metric import Metric, by_name, in_one_line, read_metric
from imp_ds.evaluation.picture import PICTURE, draw
from imp_ds.evaluation_record import Evaluation
from imp_ds.tasks import Batch, Rejection
from imp_ds.train.interference import record_interference
from imp_ds.train.recording.history import LineFile, cut_lines
from imp_ds.train.recording.interval import Interval, StepRecord
from imp_ds.train.recording.progress import Progress
from imp_ds.train.recording.samples import batch_captions, batch_pictures, sample_table
from imp_ds.train.recording.trackers.board import Board

SAMPLES = 6
_NOT_OF_TASK = ("steps", "grad_norm", "mfu", "tflops")  # of a task's values, those that have a place of their own
HISTORY = "metrics.jsonl"


class Monitor:
    """Records a run in `output_dir`; with `enabled` False (every rank but 0) each method returns at once.

    Args:
        run: the RunConfig.
        total_steps: steps of the run.
        start_step: steps done before this process; what was recorded beyond them is cut off.
        moe_layers: indices of the MoE layers in the encoder, in the order of the reports.
        peak_flops: what matrix products reach a second on all ranks together, for the utilisation; 0: not known.
    """

    def __init__(
        self, output_dir, run, *, enabled: bool, total_steps: int, start_step: int = 0, moe_layers: list[int] = (),
        peak_flops: float = 0.0,
    ):  # fmt: skip
        self.enabled, self.run, self.output_dir = enabled, run, Path(output_dir)
        self.moe_layers, self.peak_flops = list(moe_layers), peak_flops
        self.progress = Progress(total_steps, start_step, enabled=enabled)
        self.start_step, self.total_steps, self._logged = start_step, total_steps, start_step
        if not enabled:
            return
        self.history = cut_lines(self.output_dir / HISTORY, start_step, check_line)
        self._steps_of_tasks = _steps_of_tasks(self.history)
        self._lines = LineFile(self.output_dir / HISTORY)
        self._interval = Interval()
        self._logged_kinds: set[tuple[str, str]] = set()
        self.board = Board(run.train.report_to, self.output_dir, run.name, hyperparameters(run), start_step)

    def log_start(self, samples: dict[str, Batch], processor, config_text: str, waveforms: dict[str, list] | None = None) -> None:
        """Once, before the first step: the configuration, and of each task what the model is fed, rebuilt from a Batch.

        `waveforms`, {task: [(samples in [-1, 1], rate), ...]}, are the decoded audio of the same samples.
        """
        if not self.enabled or self.start_step:
            return
        self.board.text("configuration", f"```json\n{config_text}\n```")
        for name, batch in samples.items():
            batch = batch.to("cpu", non_blocking=False)
            views = self.run.task(name).all_views[batch.report.view]
            for what, picture in batch_pictures(batch, views, processor, SAMPLES).items():
                self.board.picture(f"samples/{name}/{what}", picture)
            captions = batch_captions(batch, processor.tokenizer, SAMPLES)
            if captions is not None:
                self.board.text(f"samples/{name}/captions", captions)
            for number, (waveform, rate) in enumerate((waveforms or {}).get(name, [])[:SAMPLES], start=1):
                self.board.audio(f"samples/{name}/audio_{number}", waveform, rate)
        self.board.flush()

    def record_step(self, step: int, records: list[StepRecord], learning_rate: float) -> None:
        """One optimizer step, by the tasks that trained in it; `step` counts the steps done, this one included. Not called for a
        skipped step.

        Tensors stay on their device until the log interval ends. A record's values are "loss", "grad_norm", which may be None,
        and metrics; `examples`, `tokens` and the model `flops` are those of all ranks that had the task; `seconds` is their part
        of the whole step, `wait_seconds` what of it they spent waiting for the batch; `reports` are the router reports of each
        sequence.
        """
        if not self.enabled:
            return
        for record in records:
            self._interval.add(record)
        self.progress.advance(step)
        every = self.run.train.log_every
        if step // every > self._logged // every or step == self.total_steps:
            self._logged = step
            self._log(step, learning_rate)

    def record_skip(self, step: int, task: str, reason: str, skipped: int) -> None:
        """A step of `task` that was not taken, the `skipped`-th of the run."""
        if not self.enabled:
            return
        self.progress.advance(step)
        self.progress.log(f"step {step} of task {task} was skipped: {reason} ({skipped} skipped so far)")
        self.board.scalars(step, {"optimizer/skipped_steps": skipped})

    def record_rejections(self, step: int, new: list[Rejection], counts: dict[str, dict[str, int]]) -> None:
        """Samples that were left out for the first time, of which the first of each kind is logged; `counts` of all so far, by
        source and reason."""
        if not self.enabled:
            return
        for rejection in new:
            if (rejection.source, rejection.reason) not in self._logged_kinds:
                self._logged_kinds.add((rejection.source, rejection.reason))
                self.progress.log(f"left out: {rejection.source}, {rejection.key}: {rejection.reason} ({rejection.detail})")
        tags = {f"data/{source}/left_out/{reason}": n for source, reasons in counts.items() for reason, n in reasons.items()}
        self.board.scalars(step, tags)

    def record_evaluation(
        self, step: int, metrics: list[Metric], usage: dict[str, list[list[float]]], *, split: str = "validation"
    ) -> None:
        """The results of an evaluation after `step` steps, and the experts' shares by modality.

        Those of another split than "validation" do not belong on its curves: their tags begin with the split's name.
        """
        if not self.enabled:
            return
        facts = {metric.name: metric.facts() for metric in metrics}
        line = {"kind": "evaluation", "step": step, "split": split, "results": by_name(metrics), "metrics": facts, "usage": usage}
        self._write(line)
        prefix = "" if split == "validation" else f"{split}/"
        self.board.scalars(step, {prefix + name: value for name, value in by_name(metrics).items()})
        self.board.flush()
        parts = in_one_line(metrics) or ("evaluated" if metrics else "nothing was evaluated: no evaluation and no head to score")
        self.progress.log(f"step {step}, {split}: {parts}")

    def record_interference(self, step: int, found: dict[str, Interference]) -> None:
        """How the tasks interfere after `step` steps, by the names of weights."""
        if not self.enabled:
            return
        try:
            record_interference(self.board, self.output_dir, step, found)
        except OSError as error:
            self.progress.log(f"the picture of the interference cannot be written: {error.strerror or error}")
        between = sum(measured.between_tasks for measured in found.values()) / len(found)
        self.progress.log(f"step {step}: interference between tasks {between:.2f}, a task with itself 1")

    def record_examples(
        self, step: int, evaluation: Evaluation, shown: Batch, captions: list[tuple[str, str]], processor
    ) -> None:  # fmt: skip
        """What a model has made after `step` steps of the samples of `shown`, such as captions; these are drawn as the model saw
        them; beside it what it was to be."""
        if not self.enabled:
            return
        tag, captions = f"captions/{evaluation.name}", list(zip(*captions))
        for what, picture in batch_pictures(shown, evaluation.views, processor, SAMPLES).items():
            self.board.picture(f"{tag}/{what}", picture, step)
        self.board.text(f"{tag}/generated", sample_table(dict(zip(("generated", "in the corpus"), captions))), step)
        self.board.flush()

    def log_projector(self, name: str, vectors_NC: torch.Tensor, labels=None, images_N3HW=None, *, step: int) -> None:
        """Embeddings for the projector tab, under `name`; labels are texts, images are in [0, 1]."""
        if self.enabled:
            self.board.embedding(name, vectors_NC, labels, images_N3HW, step)

    def finish(self, results: dict[str, float]) -> None:
        """The end: hyperparameters with the final scores (as final/...), and results.png in the output folder."""
        if not self.enabled:
            return
        final = {f"final/{name}": value for name, value in results.items()}
        self.board.hyperparameters(hyperparameters(self.run), final, self._logged)
        usage = next((line["usage"] for line in reversed(self.history) if line["kind"] == "evaluation"), {})
        picture = self.output_dir / PICTURE
        draw(self.history, usage, picture, title=f"{self.run.name}, {self._logged} steps", layers=self.moe_layers)
        self.board.picture_file("results", picture, self._logged)

    def close(self) -> None:
        """Flush and close; called on every way out."""
        self.progress.close()
        if self.enabled:
            self.board.close()
            self._lines.close()

    def _log(self, step: int, learning_rate: float) -> None:
        found = self._interval.summary(self.peak_flops)
        for task, values in found["tasks"].items():
            self._steps_of_tasks[task] = self._steps_of_tasks.get(task, 0) + values["steps"]
        total = sum(self._steps_of_tasks.values())
        found["shares"] = {task: self._steps_of_tasks.get(task, 0) / total for task in sorted(self._steps_of_tasks)}
        found["learning_rate"], found["memory_gib"] = learning_rate, memory_gib()
        self._write({"kind": "train", "step": step, **found})
        tags = train_scalars(found)
        experts, charts = expert_scalars(found["experts"], self.moe_layers)
        self.board.scalars(step, tags | experts)
        self.board.expert_charts(charts)
        self.progress.report({task: values["loss"] for task, values in found["tasks"].items()}, _facts(found, tags))

    def _write(self, line: dict) -> None:
        self.history.append(line)
        self._lines.add([_finite(line)])


def _facts(found: dict, tags: dict[str, float]) -> str:
    """What a log line shows of an interval beside the losses: mean training accuracy, gradient norm, rate, samples and model
    FLOPs a second, and what these are of the peak that the run measured at its start."""
    tasks = [[value for name, value in of.items() if name.startswith("accuracy/")] for of in found["tasks"].values()]
    means = [sum(values) / len(values) for values in tasks if values]
    parts = [f"accuracy {100 * sum(means) / len(means):.1f} %"] if means else []
    if (norm := tags.get("optimizer/grad_norm")) is not None:
        parts.append(f"grad norm {norm:.3g}")
    parts += [f"lr {found['learning_rate']:.2e}", f"{found['examples_per_s']:,.0f} samples/s"]
    if (tflops := found.get("tflops")) is not None:
        of_peak = f" ({100 * found['mfu']:.0f} % of the matrix peak)" if "mfu" in found else ""
        parts.append(f"{tflops:.3g} TF/s{of_peak}")
    return "  ".join(parts)


def train_scalars(found: dict) -> dict[str, float]:
    """TensorBoard's scalars of one log interval, apart from the experts'."""
    tags = {f"schedule/{task}/share": share for task, share in found["shares"].items()}
    norms = []
    for task, values in found["tasks"].items():
        tags |= {f"train/{task}/{name}": value for name, value in values.items() if name not in _NOT_OF_TASK}
        tags |= {f"perf/{name}/{task}": values[name] for name in ("mfu", "tflops") if name in values}
        norms += [(values["grad_norm"], values["steps"])] if "grad_norm" in values else []
    if norms:
        tags["optimizer/grad_norm"] = sum(norm * steps for norm, steps in norms) / sum(steps for _, steps in norms)
    tags["optimizer/learning_rate"] = found["learning_rate"]
    for name in ("examples_per_s", "tokens_per_s", "step_seconds", "data_wait_share", "memory_gib"):
        tags[f"perf/{name}"] = found[name]
    return tags | {f"perf/{name}": found[name] for name in ("mfu", "tflops") if name in found}


def expert_scalars(experts: dict[str, list[dict]], moe_layers: list[int]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Scalars of each MoE layer, and the charts that show the experts of a layer and modality together."""
    tags, charts, z_losses = {}, {}, {}
    for modality, layers in experts.items():
        for position, values in enumerate(layers):
            layer = f"moe/layer{moe_layers[position] if moe_layers else position}"
            usage = {f"{layer}/usage_expert{e}_{modality}": share for e, share in enumerate(values["usage"])}
            charts[f"{layer.removeprefix('moe/')}, {modality}"] = list(usage)
            tags |= usage
            tags |= {f"{layer}/{name}_{modality}": values[name] for name in ("dropped_fraction", "mean_combine_weight")}
            z_losses.setdefault(f"{layer}/z_loss", []).append(values["z_loss"])
    return tags | {tag: sum(values) / len(values) for tag, values in z_losses.items()}, charts


def memory_gib() -> float:
    """The most memory this process has held so far, in GiB: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def hyperparameters(run) -> dict:
    """What distinguishes one run from another, flat: the sections model, train and optimizer, and each task's batch and
    interval."""
    found = {}
    for section in ("model", "train", "optimizer"):
        for name, value in getattr(run, section).model_dump().items():
            if value is not None:
                found[f"{section}.{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    for task in run.tasks:
        found |= {f"tasks.{task.name}.batch_size": task.batch_size, f"tasks.{task.name}.interval": task.interval}
    return found


def _steps_of_tasks(history: list[dict]) -> dict[str, int]:
    """How often each task has trained according to the history."""
    steps = {}
    for line in history:
        for task, values in line.get("tasks", {}).items():
            steps[task] = steps.get(task, 0) + values["steps"]
    return steps


def check_line(line: dict) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError for a line of metrics.jsonl that is not as this file writes it."""
    _steps_of_tasks([line])
    if line["kind"] == "evaluation":
        [read_metric(name, value, line["metrics"][name]) for name, value in line["results"].items()], line["usage"].items()
    elif line["kind"] == "train":
        [values["loss"] for values in line["tasks"].values()]
    else:
        raise ValueError(line["kind"])


def _finite(value):
    """The same value with null for what JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
