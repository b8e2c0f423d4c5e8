"""How the tasks of a run interfere (`imp_ds.evaluation.interference`), from gradients of its model on its own training data.

A sample of a gradient is that of one batch of a task, as training would take it: its losses, dropped tokens, dropout and noise.
All ranks take part with their shares of the batches; the gradient is the sum over them. It is taken beside the parameters' own
gradients, so measuring between two steps leaves training as it was.

Shapes: N samples of a task, K tasks, P elements of a weight, the experts of all ranks included.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist

from imp_ds.config import RunConfig
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.evaluation.interference import Interference, interference
from imp_ds.evaluation.interference_picture import draw_interference
from imp_ds.families.train_module import TrainModule
from imp_ds.parallel.full_parameters import full_parameters
from imp_ds.parallel.groups import alone, on_main, rank, world_size
from imp_ds.tasks import Batch
from imp_ds.train.recording.trackers.tracker import Tracker
from imp_ds.train.schedule import Rotation

SAMPLES = 100  # as published
BATCH_SIZE = 32  # of all ranks: the noise of a gradient is that of this many examples
CACHE_MB = 1024
PICTURE = "interference.png"


def chosen_weights(model: TrainModule, patterns: list[str] = ()) -> list[str]:
    """The names of the parameters that match any of the patterns ("imp.blocks.*.attention.out.weight"), in the model's order.

    Without patterns, the last linear layer of the feed-forward in three layers, after each third of the depth (of 12 layers 3, 7
    and 11, as published); with experts it is the stack of all of theirs. Raises UserError for a pattern that nothing matches.
    """
    names = [name for name, _ in model.named_parameters()]
    if not patterns:
        paths, blocks = {module: path for path, module in model.named_modules()}, model.blocks()
        layers = {max(0, third * len(blocks) // 3 - 1) for third in (1, 2, 3)}
        found = [f"{paths[blocks[i]]}.{last}" for i in sorted(layers) for last in model.last_linears] if blocks else []
        if not (chosen := [name for name in found if name in names]):
            allowed = "imp_ds interference RUN --weight PATTERN"
            raise UserError("the model does not say which of its weights are measured", got=type(model).__name__, allowed=allowed)
        return chosen
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            allowed = "names of parameters, where * stands for anything, for example imp.blocks.*.attention.out.weight"
            raise UserError("the model has no such weight", got=pattern, allowed=allowed)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


class GradientRounds:
    """N rounds of gradients, one of each task, {name of the weight: float32 [K, P]}; every iteration gives the same.

    They are kept from the first iteration to the next while they take at most `cache_mb`; else they are computed again, each
    round in the place of the one before.

    Args:
        batch_of: (place of the task, number of the round) -> this rank's batch.
        names: the weights, of `model`.
        progress: called with (stage, done, total), in gradients.
        compare_alone: objectives compare a rank's samples among themselves, as where ranks train different tasks.
    """

    def __init__(
        self, model: TrainModule, batch_of: Callable[[int, int], Batch], tasks: int, samples: int, names: list[str],
        cache_mb: int = CACHE_MB, progress: Callable[[str, int, int], None] | None = None, compare_alone: bool = False,
    ):  # fmt: skip
        self.compare_alone = compare_alone
        self.model, self.batch_of, self.tasks, self.samples = model, batch_of, tasks, samples
        self.progress = progress or (lambda stage, done, total: None)
        self.weights = {name: model.get_parameter(name) for name in names}
        self.device = next(iter(self.weights.values())).device
        self.full_shapes = {name: full for name, full in full_parameters(model).items() if name in self.weights}
        round_bytes = 4 * tasks * sum(prod(shape) for shape, _ in self.full_shapes.values())
        self._keeps = samples * round_bytes <= cache_mb << 20
        # beside the model and a batch: the sums over the rounds, and the rounds that are there at a time
        self.held_bytes = round_bytes * (1 + (samples if self._keeps else 1))
        self._kept: list[dict[str, torch.Tensor]] = []
        self._done, self._total = 0, tasks * samples * (1 if self._keeps else 2)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if self._kept:
            yield from self._kept
            return
        for number in range(self.samples):
            if number == 0 or self._keeps:
                room = {
                    name: torch.empty(self.tasks, prod(shape), device=self.device)
                    for name, (shape, _) in self.full_shapes.items()
                }
            self._fill(room, number)
            if self._keeps:
                self._kept.append(room)
            yield room

    def _fill(self, room: dict[str, torch.Tensor], number: int) -> None:
        for gradient_KP in room.values():
            gradient_KP.zero_()  # where a rank holds some of the experts, the others' places
        for task in range(self.tasks):
            batch = self.batch_of(task, number).to(self.device)
            with alone() if self.compare_alone else nullcontext():
                loss, _, _ = self.model(batch)
            parts = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True, materialize_grads=True)
            for (name, (_, first)), part in zip(self.full_shapes.items(), parts, strict=True):  # both in the order of the model
                room[name][task, first : first + part.numel()] = part.flatten()
            self._done += 1
            self.progress("gradients", self._done, self._total)
        if world_size() > 1:
            for gradient_KP in room.values():
                dist.all_reduce(gradient_KP)


class InterferenceProbe:
    """Measures how the tasks of a run interfere, as often as it is asked.

    Args:
        run: whose tasks, two or more, are compared.
        model: as it stands at each measurement; on a rank of expert parallelism, with the experts of that rank.
        readers: {task: readers of its sources}, as `imp_ds.data.corpus.open_corpus` gives them.
        processor: of the run.
        weights: patterns for `chosen_weights`.
        samples: gradients of each task, N.
        batch_size: examples of each, over all ranks, of which each has one at least; a task whose own is smaller keeps that.

    Raises UserError for an unknown weight, a single task, weights that ZeRO 3 has spread over ranks, and ranks that cannot share
    a batch.
    """

    def __init__(
        self, run: RunConfig, model: TrainModule, readers: dict[str, list[Reader]], processor, *, weights: list[str] = (),
        samples: int = SAMPLES, batch_size: int = BATCH_SIZE, cache_mb: int = CACHE_MB,
    ):  # fmt: skip
        if samples < 2:
            raise UserError("interference needs several gradients of each task", got=samples, allowed="2 or more; published: 100")
        self.tasks = [task.name for task in run.tasks]
        if len(self.tasks) < 2:
            raise UserError("interference is between tasks", got=f"{self.tasks[0]} alone", allowed="two or more")
        self.model, self.samples, self.cache_mb, self.mixed = model, samples, cache_mb, run.train.mixed
        self.names = chosen_weights(model, weights)
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise UserError(
                "interference cannot be measured in training at ZeRO 3, where no rank has a full weight",
                fix="use ZeRO 0, 1 or 2, or measure the checkpoints: imp_ds interference RUN",
            )  # fmt: skip
        examples = max(1, batch_size // world_size()) * world_size()
        # the tasks take turns, so that step n K + k is round n of task k
        self.batches = StepBatches(
            [task.model_copy(update={"batch_size": min(task.batch_size, examples)}) for task in run.tasks],
            Rotation(dict.fromkeys(self.tasks, 1)), readers, Collator(processor), seed=run.data.seed, rank=rank(),
            world=world_size(), window=run.data.window, cache_mb=run.data.cache_mb, decoding=run.data.decoding,
        )  # fmt: skip

    def measure(self, progress: Callable[[str, int, int], None] | None = None) -> dict[str, Interference]:
        """The interference in each weight, by the parameter's name; on every rank the same. All ranks call it.

        The samples are the same at each call, so that calls can be compared. `progress` is called with (stage, done, total).
        """
        training = self.model.training
        self.model.train()
        try:
            with torch.enable_grad():
                return interference(self.tasks, self._rounds(progress))
        finally:
            self.model.train(training)

    @property
    def held_mib(self) -> int:
        """MiB that gradients take during a measurement, on each rank."""
        return -(-self._rounds(None).held_bytes >> 20)

    def _rounds(self, progress: Callable[[str, int, int], None] | None) -> GradientRounds:
        return GradientRounds(
            self.model, self._batch, len(self.tasks), self.samples, self.names, self.cache_mb, progress, self.mixed
        )

    def _batch(self, task: int, number: int) -> Batch:
        def made() -> Batch:
            batch = self.batches[number * len(self.tasks) + task]
            if isinstance(batch, UserError):
                raise batch
            return batch

        return on_main(made, "a batch cannot be made", every_rank=True)


def interference_scalars(found: dict[str, Interference]) -> dict[str, float]:
    """The trackers' scalars: "interference/{weight}/{task}_on_{affected task}", and the mean between tasks."""
    tags = {}
    for name, measured in found.items():
        tags[f"interference/{name}/between_tasks"] = measured.between_tasks
        for affected, row in zip(measured.tasks, measured.matrix_KK.tolist()):
            tags |= {f"interference/{name}/{task}_on_{affected}": v for task, v in zip(measured.tasks, row) if task != affected}
    return tags


def record_interference(board: Tracker, output_dir: Path, step: int, found: dict[str, Interference]) -> None:
    """Curves and heat map for the trackers; the heat map also as interference.png in the run's folder. For rank 0."""
    board.scalars(step, interference_scalars(found))
    draw_interference(found, output_dir / PICTURE, title=f"interference after {step} steps")
    board.picture_file("interference", output_dir / PICTURE, step)
