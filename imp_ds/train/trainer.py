"""Training by alternating gradient descent: every optimizer step takes one task's batch (IMP; release, `executors.py`).

    task = schedule[step];  batch = loader.next();  engine.step(batch);  monitor.record(...)
"""

import json
import math
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from imp_ds.config import RunConfig
from imp_ds.data.collation import Collator
from imp_ds.data.loader import RotatingLoader
from imp_ds.data.sources import FolderSource
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators, evaluate, expert_usage
from imp_ds.parallel.groups import is_main, on_main, raise_shared, rank, settle, world_size
from imp_ds.parallel.launch import settle_environment
from imp_ds.tasks import Batch
from imp_ds.train import checkpoint, ds_config, run_folder
from imp_ds.train.engine import Engine, build_model, start_process_group
from imp_ds.train.first_samples import first_samples
from imp_ds.train.monitor import Monitor, memory_gib
from imp_ds.train.processor import settle_processor
from imp_ds.train.schedule import build_schedule

RESULTS = "results.json"
PROJECTED_ROWS = 500
SHOWN_SAMPLES = 6


def train(run: RunConfig, output_dir: Path, ds_path: Path | None = None, resume: bool = False) -> None:
    """Train `run` on the ranks that a launcher started, and write everything into `output_dir`.

    Args:
        ds_path: the DeepSpeed configuration; None takes the shipped one for ZeRO 2.
        resume: go on from the newest whole checkpoint in `output_dir`, if there is one.

    Raises UserError, on every rank, for what cannot be trained; nothing has been allocated or written then.
    """
    world = settle_environment()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    ds = ds_config.resolve(ds_config.load(ds_path or ds_config.default_path(run.train.ep_size, device_type)), run, world)
    device = start_process_group()
    sources = on_main(lambda: open_sources(run), "the corpus cannot be read", every_rank=True)
    on_main(lambda: run_folder.claim(Path(output_dir), run, resume), "the output folder cannot be used")
    trainer = Trainer(run, Path(output_dir), ds, sources, device, resume)
    try:
        trainer.loop()
        trainer.finish()
    finally:
        trainer.monitor.close()
        trainer.loader.close()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def open_sources(run: RunConfig) -> dict[str, FolderSource]:
    """The training split of each task's source."""
    return {task.name: FolderSource(run.data.root, task.source, "train") for task in run.tasks}


class Trainer:
    """All that a run holds while it trains."""

    def __init__(self, run: RunConfig, output_dir: Path, ds: dict, sources: dict[str, FolderSource], device, resume: bool):
        self.run, self.output_dir, self.sources = run, output_dir, sources
        self.processor = settle_processor(run, sources, output_dir)
        self.config = run.model.to_config(len(self.processor.tokenizer), run.tasks)
        self.step, self.adam_steps, self.bad_steps, self.seconds = 0, 0, 0, 0.0
        self.engine = self._engine(ds, device, resume)
        self.schedule = build_schedule(run.train.schedule, run.tasks, run.train.seed)
        self.evaluators = build_evaluators(run, self.processor, "validation")
        self.monitor = Monitor(
            output_dir, run, enabled=is_main(), total_steps=run.train.steps, start_step=self.step,
            moe_layers=self.config.moe_layer_indices,
        )  # fmt: skip
        self.loader = RotatingLoader(
            run.tasks, self.schedule, sources, Collator(self.processor), seed=run.data.seed, rank=rank(), world=world_size(),
            start_step=self.step, stop_step=run.train.steps, workers=run.data.workers, prefetch=run.data.prefetch,
            pin_memory=device.type == "cuda", timeout_s=run.data.timeout_s, cache_mb=run.data.cache_mb,
        )  # fmt: skip
        on_main(self._show_start, "the first samples cannot be shown")

    def _engine(self, ds: dict, device, resume: bool) -> Engine:
        """The model on DeepSpeed, with the weights and the optimizer of the newest checkpoint when there is one to resume."""
        model = build_model(self.config, self.run.train.seed, self.run.train.ep_size)
        if self.run.train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        reader = self._newest() if resume else None
        if reader is not None:
            on_main(lambda: reader.load_weights(model), "a checkpoint cannot be loaded", every_rank=True)
            self.step, self.adam_steps = reader.state["step"], reader.state["adam_steps"]
            self.bad_steps, self.seconds = reader.state["bad_steps"], reader.state["seconds"]
        engine = Engine(model, ds, weight_decay=self.run.optimizer.weight_decay, device=device)
        if reader is not None:
            reader.load_optimizer(engine)
        return engine

    def _newest(self) -> checkpoint.Reader | None:
        """Rank 0 looks and verifies; all agree on what it found."""
        found = [on_main(lambda: checkpoint.newest(self.output_dir, warn=lambda m: print(m, file=sys.stderr)), "no checkpoint")]
        if world_size() > 1:
            dist.broadcast_object_list(found, src=0)
        if is_main():
            nothing = f"no checkpoint in {self.output_dir}: starting from step 0"
            print(f"resuming from {found[0]}" if found[0] else nothing, flush=True)
        return None if found[0] is None else checkpoint.Reader(found[0])

    def _show_start(self) -> None:
        """What the model is fed, once."""
        if self.step:
            return
        samples, sounds = first_samples(self.loader.batches, SHOWN_SAMPLES)
        self.monitor.log_start(samples, self.processor, json.dumps(self.run.model_dump(mode="json"), indent=2), sounds)

    def loop(self) -> None:
        """Steps until the run is done, with evaluations and checkpoints on the way."""
        settings = self.run.train
        self.engine.deepspeed.train()
        raise_shared(self._fetch())
        while self.step < settings.steps:
            self._one_step()
            if settings.eval_every and self.step % settings.eval_every == 0 and self.step < settings.steps:
                self.evaluate()
            if settings.save_every and self.step % settings.save_every == 0 and self.step < settings.steps:
                self.save()

    def _one_step(self) -> None:
        start = time.perf_counter()
        rate, batch, wait = self.run.learning_rate(self.step), self._batch, self._wait
        # dropout, where there is any, is drawn anew from the step: a resumed run needs no generator's state
        torch.manual_seed((self.run.train.seed * 1_000_003 + self.step) * 4099 + rank())
        loss, metrics, reports = self.engine.forward(batch)
        # while the device is busy, fetch the next batch, so that one exchange settles whether the loss is finite
        # everywhere and whether every rank will have a next step to take part in, and gives the means that are recorded
        problem = self._fetch()
        (finite, fed), means = settle([torch.isfinite(loss.detach()), problem is None], {"loss": loss, **metrics})
        if not fed:
            raise_shared(problem)
        self.step += 1
        if not finite:
            self._skipped(batch.task)
            return
        norm, _ = self.engine.update(rate)
        self.adam_steps += 1
        self._check_norm(batch.task, norm)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.monitor.record_step(
            self.step, batch.task, means.pop("loss").detach(), means, reports, learning_rate=rate, grad_norm=norm,
            examples=self.run.task(batch.task).batch_size, tokens=count_tokens(batch) * world_size(),
            step_seconds=seconds, wait_seconds=wait,
        )  # fmt: skip

    def _fetch(self) -> UserError | None:
        """Take the next batch from the loader, if there is one left; returns what went wrong."""
        try:
            batch = next(self.loader, None)
            self._batch = None if batch is None else batch.to(self.engine.device)
            self._wait = self.loader.wait_seconds
        except UserError as error:
            return error
        return None

    def _skipped(self, task: str) -> None:
        self.bad_steps += 1
        if is_main():
            skipped = f"nothing was updated ({self.bad_steps} so far)"
            print(f"step {self.step}: the loss of task {task} is not finite; {skipped}", file=sys.stderr)
        if self.bad_steps >= self.run.train.max_bad_steps:
            raise UserError(
                f"the loss of task {task} was not finite at step {self.step}", got=f"{self.bad_steps} skipped steps",
                allowed=f"fewer than train.max_bad_steps = {self.run.train.max_bad_steps}",
                fix="look at the task's data; lower optimizer.peak_rate; then --resume goes on from the last checkpoint",
                shared=True,
            )  # fmt: skip

    def _check_norm(self, task: str, norm: float) -> None:
        """A gradient that is not finite has already reached the weights: stop before they reach a checkpoint."""
        if not math.isfinite(float(norm)):
            raise UserError(
                f"the gradient of task {task} was not finite at step {self.step}", got=float(norm),
                fix="lower optimizer.peak_rate or set optimizer.clip; then --resume goes on from the last checkpoint",
                shared=True,
            )  # fmt: skip

    def evaluate(self) -> dict[str, float]:
        """All evaluations on the validation split; every rank gets the results."""
        results = evaluate(self.engine.model.imp, self.evaluators)
        self.monitor.record_evaluation(self.step, results, expert_usage(self.evaluators))
        return results

    def save(self) -> None:
        state = {
            "step": self.step, "adam_steps": self.adam_steps, "bad_steps": self.bad_steps, "seconds": self.seconds,
            "world_size": world_size(), "ep_size": self.engine.ep_size, "zero_stage": self.engine.stage,
            "config": json.loads(self.config.to_json_string(use_diff=False)), "run": self.run.model_dump(mode="json"),
            "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        }  # fmt: skip
        checkpoint.save(self.engine, self.output_dir, self.step, state, self.run.train.keep_checkpoints)

    def finish(self) -> None:
        """The last checkpoint, the final scores on the test split (validation where there is none), and what is drawn of them."""
        self.save()
        results, evaluators = self.evaluate(), self.evaluators
        if all((Path(self.run.data.root) / e.source.path / "test").is_dir() for e in self.run.evaluations):
            evaluators = build_evaluators(self.run, self.processor, "test")
            results = evaluate(self.engine.model.imp, evaluators)
            self.monitor.record_evaluation(self.step, results, expert_usage(evaluators), split="test")
        peak = torch.tensor([memory_gib()], device=self.engine.device)
        if world_size() > 1:
            dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        results |= {"train/steps": self.step, "train/seconds": round(self.seconds, 1)}
        results["train/peak_rank_gib"] = round(float(peak), 2)
        on_main(lambda: self._write_results(results), "the results cannot be written")

    def _write_results(self, results: dict[str, float]) -> None:
        (self.output_dir / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
        for evaluator in self.evaluators:
            rows = min(PROJECTED_ROWS, len(evaluator.vectors_NC))
            labels, pictures = evaluator.label_names(), evaluator.thumbnails(rows)
            vectors_NC = evaluator.vectors_NC[:rows]
            self.monitor.log_projector(evaluator.record.name, vectors_NC, labels and labels[:rows], pictures, step=self.step)
        self.monitor.finish(results)


def count_tokens(batch: Batch) -> int:
    """Tokens of a rank's batch over all modalities, padding included."""
    return sum(next(iter(inputs.values())).shape[:2].numel() for inputs in batch.inputs.values())
