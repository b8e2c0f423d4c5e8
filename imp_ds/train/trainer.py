"""Training by alternating gradient descent: every optimizer step takes one task's batch (IMP; release, `executors.py`).

    mixture = schedule.mixture(step);  batch = loader.next();  output = engine.forward(batch);  engine.update();  record
"""

import json
import math
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from imp_ds.config import RunConfig
from imp_ds.data.class_names import check_labels, with_class_names
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.loader import RotatingLoader
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.evaluation import Metric, write_lines
from imp_ds.evaluation.missing_splits import check_evaluations
from imp_ds.families import family_of
from imp_ds.families.train_module import StepOutput
from imp_ds.parallel.groups import any_rank, barrier, is_main, on_main, raise_shared, world_size
from imp_ds.parallel.launch import init_environment
from imp_ds.parallel.watchdog import Watchdog
from imp_ds.tasks import Batch
from imp_ds.train import random_state, run_folder
from imp_ds.train.checkpoint import Writer
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.compilation import uncompiled
from imp_ds.train.engine.engine import process_group
from imp_ds.train.guard import MIXTURE, Guard
from imp_ds.train.held_out.evaluations import SHOWN_SAMPLES, HeldOut
from imp_ds.train.interference import InterferenceProbe
from imp_ds.train.matrix_peak import matrix_peak
from imp_ds.train.preemption import Preemption
from imp_ds.train.processor import hashes, init_processor
from imp_ds.train.recording.final_results import peak_rank_gib, write_results
from imp_ds.train.recording.first_samples import first_samples
from imp_ds.train.recording.monitor import Monitor
from imp_ds.train.recording.rejections import Rejections
from imp_ds.train.recording.step_facts import rank_facts, step_records
from imp_ds.train.recording.step_means import StepMeans
from imp_ds.train.recording.trackers.board import check_installed
from imp_ds.train.run_folder import ANSWERS, RESULTS
from imp_ds.train.start import (
    compile_model,
    find_checkpoint,
    media_features,
    open_batches,
    open_readers,
    show_ranks,
    show_trained,
    start_engine,
    tell_of_groups,
)

BEFORE = "before"
Means = dict[str, dict[str, float]]  # task -> name of a loss, metric or fact -> mean over the ranks that trained the task


def train(
    run: RunConfig, output_dir: Path, ds_path: Path | None = None, resume: str | None = None, hostfile: Path | None = None,
    before: Callable[[], list[Metric]] | None = None, allow_changes: bool = False,
) -> None:  # fmt: skip
    """Train `run` on the ranks that a launcher started, and write everything into `output_dir`.

    Args:
        ds_path: the DeepSpeed configuration; None takes the shipped one for ZeRO 2.
        resume: which checkpoint in `output_dir` to go on from (`imp_ds.train.resume`); None: this is a new run.
        hostfile: what the ranks were started with; rank 0 compares their places with it.
        before: gives the scores of the model that the run starts from, on every rank, once all of them have
            joined; they are recorded as of step 0, and among the results as before/{name}.
        allow_changes: whether a resumed run may have another learning rate, batch size, ... (`imp_ds.train.run_folder`).

    A resumed run that is finished already says so, and nothing is done.

    Raises UserError, on every rank, for what cannot be trained; nothing has been allocated or written then. Raises Preempted
    after a signal and the checkpoint that followed it. The process group that was made has been destroyed then, unless an
    exception is one rank's own: to leave would be to wait for the others.
    """
    world = init_environment()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    ds = ds_config.resolve(ds_config.load(ds_path or ds_config.default_path(run.train.ep_size, device_type)), run, world)
    if not int(os.environ["RANK"]) and (waits := ds_config.compiles(ds)):
        print(waits, flush=True)
    with Preemption() as preemption:
        preemption.starting = True
        hang_s, start_s = run.train.hang_timeout_s, run.train.start_timeout_s
        # the watchdog names who hangs; a time limit of the process group, which cannot, must not come first
        joined = process_group(2 * max(hang_s, start_s), start_s)
        with joined as device, Watchdog(hang_s, start_timeout_s=start_s) as watchdog:
            on_main(lambda: check_installed(run.train.report_to), "the run cannot be watched")
            readers = open_readers(run, watchdog)
            watchdog.progress(0, "starting, reading the labels")
            run = on_main(lambda: with_class_names(run, readers), "the class names cannot be read", every_rank=True)
            on_main(lambda: check_labels(run, readers), "the labels cannot be read")
            on_main(lambda: check_evaluations(run, "validation"), "the evaluations cannot be read")
            output_dir = Path(output_dir)
            claim = lambda: run_folder.claim(output_dir, run, resume is not None, allow_changes)  # noqa: E731
            lock = on_main(claim, "the output folder cannot be used")  # noqa: F841  held to the end
            if not _is_finished(output_dir, run, resume):
                watchdog.progress(0, "starting, scoring the model before")
                scores = [] if before is None else before()
                watchdog.progress(0, "starting")
                trainer = Trainer(run, output_dir, ds, readers, device, resume, preemption, watchdog, hostfile, scores)
                _run(trainer)
            barrier()


def _is_finished(output_dir: Path, run: RunConfig, resume: str | None) -> bool:
    """Whether there is nothing to do, which is said; all ranks call it."""
    finished = any_rank(is_main() and resume is not None and run_folder.is_finished(output_dir, run))
    if finished and is_main():
        print(f"finished: all {run.train.steps} steps are done, the scores are in {output_dir / RESULTS}", flush=True)
    return finished


def _run(trainer: "Trainer") -> None:
    try:
        trainer.loop()
        trainer.finish()
    finally:
        trainer.monitor.close()
        trainer.rejections.close()
        trainer.loader.close()


class Trainer:
    """All that a run holds while it trains."""

    def __init__(
        self, run: RunConfig, output_dir: Path, ds: dict, readers: dict[str, list[Reader]], device: torch.device,
        resume: str | None, preemption: Preemption, watchdog: Watchdog, hostfile: Path | None, before: list[Metric],
    ):  # fmt: skip
        self.run, self.output_dir, self.preemption, self.watchdog = run, output_dir, preemption, watchdog
        self.before = before
        reader = None if resume is None else find_checkpoint(output_dir, resume, run.train.init_from)
        self.processor = init_processor(run, readers, output_dir, None if reader is None else reader.state)
        family = family_of(run)
        self.config = family.config(run, self.processor)
        show_ranks(run, family.experts(self.config), device, hostfile)
        if is_main() and resume is not None:
            nothing = f"no checkpoint in {output_dir}: starting from step 0"
            print(nothing if reader is None else f"resuming from {reader.folder}", flush=True)
        if reader is not None:
            tell_of_groups(run, reader.state)
        show_trained(run, self.config, output_dir)
        self._processor_hashes = hashes(output_dir)
        self._take_state({} if reader is None else reader.state)
        self.engine, frozen = start_engine(run, self.config, ds, device, reader, self.processor, output_dir)
        self._random = None if reader is None else reader.random_state_of(device)
        self.writer = Writer(
            self.engine, output_dir, keep=run.train.keep_checkpoints, milestone_every=run.train.milestone_every,
            # a slow disk is reported before the watchdog takes the wait for a hang
            timeout_s=min(600.0, run.train.hang_timeout_s / 2), frozen=frozen,
        )  # fmt: skip
        self.held_out = HeldOut(run, self.engine, self.processor, watchdog, self._best)
        self.flops = family.cost(run).batch_flops(world_size(), run.train.mixed)
        self.rejections = Rejections(
            output_dir, run.tasks, readers, run.data.max_rejected, writes=is_main(), start_step=self.step, state=self._rejected,
        )  # fmt: skip
        features = media_features(run, self.engine, self.processor, readers, frozen, watchdog)
        batches = open_batches(run, readers, Collator(self.processor, features), watchdog)
        self.schedule, self.step_means = batches.schedule, StepMeans(batches.schedule.mixture)
        self.loader = RotatingLoader(
            batches, start_step=self.step, stop_step=run.train.steps, workers=run.data.workers, prefetch=run.data.prefetch,
            pin_memory=device.type == "cuda", timeout_s=run.data.timeout_s,
        )  # fmt: skip
        if run.train.compile:
            compile_model(run, self.engine, self.loader.batches, watchdog, self.step)
        self.probe = None
        if run.train.interference_every:
            samples = run.train.interference_samples
            self.probe = InterferenceProbe(run, self.engine.model, readers, self.processor, samples=samples)
        dtype = torch.bfloat16 if ds.get("bf16", {}).get("enabled", False) else torch.float32
        self.monitor = Monitor(
            output_dir, run, enabled=is_main(), total_steps=run.train.steps, start_step=self.step,
            moe_layers=family.moe_layers(self.config), peak_flops=matrix_peak(device, dtype),
        )  # fmt: skip
        on_main(self._show_start, "the first samples cannot be shown")

    def _take_state(self, state: dict) -> None:
        """Where the run stands: at its start, or as a checkpoint knows it."""
        self.step, self.adam_steps, self.seconds = (state.get(name, 0) for name in ("step", "adam_steps", "seconds"))
        # steps that were skipped, in all and since the last checkpoint; times that the run has gone back
        self.skipped, self.bad_steps, self.rollbacks = state.get("skipped", 0), 0, state.get("rollbacks", 0)
        self.guard = Guard(self.run.train.spike_deviations, state.get("guard"))
        self._rejected, self._best = state.get("rejected"), state.get("best")

    def _show_start(self) -> None:
        """What the model is fed, once."""
        if self.step:
            return
        if self.before:
            self.monitor.record_evaluation(0, self.before, {}, split=BEFORE)
        samples, waveforms = first_samples(self.loader.batches, SHOWN_SAMPLES)
        self.monitor.log_start(samples, self.processor, json.dumps(self.run.model_dump(mode="json"), indent=2), waveforms)

    def loop(self) -> None:
        """Steps until the run is done, with evaluations and checkpoints on the way."""
        settings = self.run.train
        self.engine.deepspeed.train()
        raise_shared(self._fetch())
        self.preemption.starting = False
        random_state.start(self._random, settings.seed, self.step, self.engine.device)
        self.held_out.start(self.step, self.monitor)
        while self.step < settings.steps and not self._stops():
            self.watchdog.progress(self.step, "training")
            self._one_step()
            self.writer.poll()
            if self.probe is not None and self.step % settings.interference_every == 0:
                self.measure_interference()
            if self.step == settings.steps:
                break
            due = bool(settings.eval_every) and self.step % settings.eval_every == 0
            is_best = due and self.held_out.evaluate(self.step)[1]
            if is_best or settings.save_every and self.step % settings.save_every == 0:
                self.save()

    def _one_step(self) -> None:
        """One optimizer step: the batch of the step's task, forward, update, record."""
        start = time.perf_counter()
        mixture = self.schedule.mixture(self.step)  # the tasks of the step: one, unless each rank draws its own
        batch, facts = self._batch, self._facts  # a pure function of (seed, step, rank), fetched during the step before
        output = self.engine.forward(batch, self.run.task(batch.task).micro_batches)
        means, goes_on = self._exchange(batch, facts, mixture, output)
        norm, reason = self._update(batch.task, mixture, means)
        self.step += 1
        if reason is None:
            self._record(batch.task, mixture, means, output.reports, norm, time.perf_counter() - start)
        else:
            self._skipped(", ".join(mixture), reason)
        if not goes_on:
            self.save()
            raise self.preemption.preempted(self.step, self.writer.wait())

    def _exchange(self, batch: Batch, facts: dict, mixture: dict[str, float], output: StepOutput) -> tuple[Means, bool]:
        """By one all-reduce the means over the ranks, by task, and whether the run goes on, which it does not after a signal. The
        next batch is fetched first, while the device is busy: so all know whether every rank has a next step to take part in."""
        problem = self._fetch()
        values = {"loss": output.loss, **output.metrics, **facts}
        states = [problem is None, not self.preemption.requested]
        (fed, goes_on), means = self.step_means(self.step, batch.task, states, values)
        if not fed:
            raise_shared(problem)
        self._count_rejected(batch, mixture, means)
        return means, goes_on

    def _record(self, own: str, mixture: dict[str, float], means: Means, reports: dict, norm: float, seconds: float) -> None:
        self.adam_steps, self.seconds = self.adam_steps + 1, self.seconds + seconds
        records = step_records(self.run.tasks, mixture, means, own, reports, grad_norm=norm, seconds=seconds)
        self.monitor.record_step(self.step, records, self.run.learning_rate(self.step - 1))

    def _count_rejected(self, batch: Batch, mixture: dict[str, float], means: Means) -> None:
        anywhere = any(found["rejected"] > 0 for found in means.values())
        new = self.rejections.add(self.step + 1, mixture, batch.task, batch.report.rejected, anywhere)
        if new:
            self.monitor.record_rejections(self.step + 1, new, self.rejections.counts)

    def _anomaly(self, means: Means) -> str | None:
        """The anomalies of the tasks' losses for which the step is skipped, or None; all losses are remembered."""
        found = {task: self.guard.anomaly(task, "loss", values["loss"]) for task, values in means.items()}
        reasons = [reason if len(means) == 1 else f"in {task} {reason}" for task, reason in found.items() if reason is not None]
        return "; ".join(reasons) or None

    def _fetch(self) -> UserError | None:
        """Take the next batch from the loader, if there is one left; returns what went wrong."""
        try:
            batch = next(self.loader, None)
            self._batch = None if batch is None else batch.to(self.engine.device)
            if batch is not None:  # counted on the host, where nothing waits for the device
                self._facts = rank_facts(batch, self.loader.wait_seconds, self.flops(batch))
        except UserError as error:
            # a launcher that stops us may have stopped the loader's workers too; there is no next step anyway
            return None if self.preemption.requested else error
        return None

    def _update(self, own: str, mixture: dict[str, float], means: Means) -> tuple[float, str | None]:
        """Backward and the optimizer's step, unless a loss or the norm of the gradient is an anomaly: the norm, and why the step
        is skipped."""
        reason = self._anomaly(means)
        if reason is not None:
            self.engine.skip()
            return math.nan, reason
        # the mean of several tasks' gradients has a norm of its own
        whose = own if len(mixture) == 1 else MIXTURE

        def accept(norm: float) -> bool:
            nonlocal reason
            reason = self.guard.anomaly(whose, "gradient norm", norm)
            return reason is None

        target_norm = self.run.task(own).gradient_norm if self.run.optimizer.task_normalisation else None
        norm, _ = self.engine.update(self.run.learning_rate(self.step), accept, target_norm)
        return norm, reason

    def _skipped(self, task: str, reason: str) -> None:
        self.skipped, self.bad_steps = self.skipped + 1, self.bad_steps + 1
        self.monitor.record_skip(self.step, task, reason, self.skipped)
        if self.bad_steps >= self.run.train.max_bad_steps:
            self._roll_back(task, reason)

    def _roll_back(self, task: str, reason: str) -> None:
        """Take weights and optimizer back to the last checkpoint, and go on with the data that come next (PaLM, section 5.1)."""
        reader, settings = None, self.run.train
        if self.rollbacks < settings.max_rollbacks:
            self._await_checkpoint()
            reader = find_checkpoint(self.output_dir, "auto", self.run.train.init_from)
        if reader is None:
            gone_back = f"; went back {self.rollbacks} times before" if self.rollbacks else ", and no checkpoint to go back to"
            raise UserError(
                f"step {self.step} of task {task} was skipped: {reason}",
                got=f"{self.bad_steps} skipped steps since the last checkpoint{gone_back}",
                allowed=f"fewer than train.max_bad_steps = {settings.max_bad_steps}, {settings.max_rollbacks} times",
                fix="look at the task's data; lower optimizer.peak_rate; then --resume latest goes on from the last checkpoint",
                shared=True,
            )  # fmt: skip
        reader.restore(self.engine)
        self.adam_steps, self.guard = reader.state["adam_steps"], Guard(settings.spike_deviations, reader.state["guard"])
        self.rollbacks, self.bad_steps = self.rollbacks + 1, 0
        if is_main():
            steps = f"{settings.max_bad_steps} steps were skipped since"
            print(f"step {self.step}: back to the weights of {reader.folder.name}, {steps}; the data go on", flush=True)

    def _await_checkpoint(self) -> None:
        """Wait for a save that is on its way; one that failed has been reported, and the one before it serves."""
        try:
            self.writer.wait()
        except UserError:
            pass

    def measure_interference(self) -> None:
        """How the tasks interfere now; training goes on as if it had not been asked."""
        stage = lambda stage, done, total: f"measuring interference, {stage} {done} of {total}"  # noqa: E731
        with uncompiled(), random_state.kept(self.engine.device):
            found = self.probe.measure(lambda *progress: self.watchdog.progress(self.step, stage(*progress)))
        on_main(lambda: self.monitor.record_interference(self.step, found), "the interference cannot be recorded")

    def _stops(self) -> bool:
        """Whether nothing better has come for too long (`train.patience`), which is said."""
        reason = self.held_out.reason_to_stop(self.step)
        if reason is not None:
            self.monitor.progress.log(reason)
        return reason is not None

    def save(self) -> None:
        """Start a checkpoint; training goes on while it is written."""
        self.watchdog.progress(self.step, "saving")
        self.bad_steps = 0
        state = {
            "step": self.step, "adam_steps": self.adam_steps, "seconds": self.seconds, "skipped": self.skipped,
            "rollbacks": self.rollbacks, "guard": self.guard.state(), "rejected": self.rejections.state(),
            "world_size": world_size(), "ep_size": self.engine.ep_size, "zero_stage": self.engine.stage,
            "config": json.loads(self.config.to_json_string(use_diff=False)), "run": self.run.model_dump(mode="json"),
            "processor": self._processor_hashes, "best": self.held_out.state(),
            "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        }  # fmt: skip
        self.writer.save(self.step, state)

    def finish(self) -> None:
        """The last checkpoint, the final scores on the test split (validation where there is none), and what is drawn of them."""
        self.save()
        self.writer.wait()
        self.held_out.evaluate(self.step)
        if self.held_out.best is not None:  # which the checkpoint has to know
            self.save()
            self.writer.wait()
        results, evaluators = self.held_out.final(self.step)
        results += [
            Metric("train/steps", self.step, "count"), Metric("train/skipped_steps", self.skipped, "count"),
            Metric("train/seconds", round(self.seconds, 1), "s"),
            Metric("train/peak_rank_gib", peak_rank_gib(self.engine.device), "GiB"),
            *(Metric(f"data/{source}/left_out", sum(n.values()), "count") for source, n in self.rejections.counts.items()),
            *(Metric(f"train/samples/{task}", sum(map(len, of)), "count") for task, of in self.loader.batches.readers.items()),
            *(metric._replace(name=f"{BEFORE}/{metric.name}") for metric in self.before), *self.held_out.best_metrics(),
        ]  # fmt: skip

        def written():
            write_results(self.output_dir, results, self.held_out.evaluators, self.monitor, self.step)
            write_lines(self.output_dir / ANSWERS, evaluators)

        on_main(written, "the results cannot be written")
