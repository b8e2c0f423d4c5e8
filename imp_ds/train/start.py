"""What a run is put together from: sources, the plan of ranks, the engine with the weights it starts from."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from transformers import PreTrainedConfig

from imp_ds.config import RunConfig
from imp_ds.data.corpus import open_corpus
from imp_ds.data.files.storage import Storage
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.reader import Reader
from imp_ds.data.sources.lengths import SampleLengths, open_lengths
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.arrival import Arrival
from imp_ds.families.train_module import TrainModule
from imp_ds.families.trainable import freeze_others, trained_parts
from imp_ds.modalities.modality import part_of
from imp_ds.parallel import rank_grid
from imp_ds.parallel.groups import is_main, on_main, rank, world_size
from imp_ds.parallel.hostfile import check_hostfile
from imp_ds.parallel.watchdog import Watchdog
from imp_ds.tasks import Batch
from imp_ds.terminal.stage_progress import StageProgress
from imp_ds.train import checkpoint, resume
from imp_ds.train.engine.compilation import SAMPLES, CompiledBlocks, tile
from imp_ds.train.engine.engine import Engine
from imp_ds.train.engine.partition import Partitioner, stage_of, type_of
from imp_ds.train.recording.first_samples import first_occurrences
from imp_ds.train.run_folder import INITIAL, TRAINED
from imp_ds.train.schedule import build_schedule
from imp_ds.written_files import write_file, write_json

_COLUMNS = 140  # of a grid that goes to a file


def open_readers(run: RunConfig, watchdog: Watchdog | None = None, split: str = "train") -> dict[str, list[Reader]]:
    """The readers of each task's sources on a split. All ranks call it.

    Indexes that are missing are built by rank 0, or by the first rank of each node where nodes share no file system; the other
    ranks find them.
    """
    opened = lambda report: open_corpus(run, split, progress=report)  # noqa: E731
    readers = _in_turn(opened, watchdog, "starting, reading the sources", "the corpus cannot be read")
    if is_main():
        _tell_of_damage(readers)
    return readers


def _tell_of_damage(readers: dict[str, list[Reader]]) -> None:
    every = (reader for of_task in readers.values() for reader in of_task)
    for line in dict.fromkeys(f"{reader.name}: {damage}" for reader in every for damage in reader.damage):
        print(line, file=sys.stderr, flush=True)


def _in_turn(work: Callable, watchdog: Watchdog | None, doing: str, problem: str):
    """`work(report)` on every rank, where the first makes what the others find: rank 0, then the first rank of each node, which
    may share no file system with it, then all. All ranks call it."""
    for is_first in (is_main(), os.environ.get("LOCAL_RANK", "0") == "0"):
        making = lambda is_first=is_first: _with_progress(work, watchdog, doing) if is_first else None  # noqa: E731
        on_main(making, problem, every_rank=True)
    return on_main(lambda: work(None), problem, every_rank=True)


def _with_progress(work: Callable, watchdog: Watchdog | None, doing: str):
    """`work(report)`, whose stages rank 0 shows, and the watchdog hears of as what the rank is `doing`."""
    with StageProgress() if is_main() else nullcontext() as shown:

        def report(*stage) -> None:
            if watchdog is not None:
                watchdog.progress(0, doing)
            if shown is not None:
                shown(*stage)

        return work(report)


def show_ranks(run: RunConfig, experts: int, device: torch.device, hostfile: Path | None) -> None:
    """Print who computes where with which experts, and what of it is unfit or not as in the hostfile. All ranks call it."""
    locations = rank_grid.gather_places(device)
    hosts = on_main(lambda: check_hostfile(hostfile) if hostfile else None, "the hostfile cannot be read")
    if is_main() and len(locations) > 1:
        console = Console() if sys.stdout.isatty() else Console(width=_COLUMNS)
        rank_grid.show(rank_grid.rank_grid(locations, run.train.ep_size, experts, hosts), console)


def show_trained(run: RunConfig, config: PreTrainedConfig, output_dir: Path) -> None:
    """Of a run that trains a part of the model: print which tensors these are, and write the list into the run's folder. All
    ranks call it. Raises UserError for a pattern that nothing matches."""
    if run.train.trainable is None:
        return

    def show() -> None:
        trained = trained_parts(family_of(run).Model, config, run.train.trainable)
        print("\n".join(trained.lines()), flush=True)
        write_json(output_dir / TRAINED, trained.as_json())

    on_main(show, "what is trained cannot be listed")


def find_checkpoint(output_dir: Path, where: str, base: str | None = None) -> checkpoint.Reader | None:
    """The checkpoint that `--resume where` means: rank 0 looks and verifies, all agree on what it found.

    base: the run's `train.init_from`, whose weights a checkpoint may refer to. Raises UserError when they are others now.
    """
    warn = lambda message: print(message, file=sys.stderr, flush=True)  # noqa: E731
    found = [on_main(lambda: resume.find(output_dir, where, warn), "no checkpoint can be resumed")]
    if world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return None
    reader = checkpoint.Reader(found[0], base)
    on_main(reader.check_base, "the weights that the run does not train cannot be read")
    return reader


def tell_of_groups(run: RunConfig, state: dict) -> None:
    """Say that a run goes on with other draws than its checkpoint's, of whose `state` this is, would have had, if so."""
    before, now = state["world_size"] // state["ep_size"], world_size() // run.train.ep_size
    if run.train.mixed and before != now and is_main():
        print(
            f"until step {state['step']} {before} groups of ranks drew a task each, from here on {now}: train.schedule = "
            "sampling_per_rank draws other tasks then, and some samples may come twice in this epoch or not at all; only with "
            f"{before} groups does it go on as it was", file=sys.stderr, flush=True,
        )  # fmt: skip


def start_engine(
    run: RunConfig, config: PreTrainedConfig, ds: dict, device: torch.device, reader: checkpoint.Reader | None, processor,
    output_dir: Path,
) -> tuple[Engine, checkpoint.Frozen]:  # fmt: skip
    """The model on DeepSpeed, with the weights and the optimizer of `reader`'s checkpoint, the weights of `train.init_from`,
    those of the parts that its settings name, or fresh ones; and where the weights lie that it does not train."""
    _note_origins(run, config, reader)
    fresh = reader is None and run.train.init_from is None
    model, said, sources, partition = _build(run, config, ds, device, fresh=fresh)
    if run.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if reader is not None:
        on_main(lambda: reader.load_weights(model), "a checkpoint cannot be loaded", every_rank=True)
    else:
        sources |= _load_initial(run, model, processor, said, output_dir)
    freeze_others(model, run.train.trainable)
    frozen = checkpoint.refer_to_frozen(model, output_dir, run.train.ep_size, sources, reader)
    if partition is not None:
        partition.rest(model, device)
    decays = dict(weight_decay=run.optimizer.weight_decay, ema=run.train.ema)
    engine = Engine(model, ds, **decays, device=device, mixed=run.train.mixed)
    if reader is not None:
        reader.load_optimizer(engine)
    return engine, frozen


def _note_origins(run: RunConfig, config: PreTrainedConfig, reader: checkpoint.Reader | None) -> None:
    """Record in the configuration which models the run takes parts from. Raises UserError where they are no longer those that the
    checkpoint knows. All ranks call it."""
    saved = None if reader is None else reader.state.get("config")
    found = [on_main(lambda: family_of(run).origins(run, saved), "a model that the run takes parts from cannot be read")]
    if world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    for name, value in found[0].items():
        setattr(config, name, value)


def media_features(
    run: RunConfig, engine: Engine, processor, readers: dict[str, list[Reader]], frozen: checkpoint.Frozen, watchdog: Watchdog
):  # fmt: skip
    """What the family computes of the corpus' media before the first step, or None. All ranks call it."""
    hashes = {name: str((entry["parts"], entry.get("key"))) for name, entry in frozen.index.items()}
    compute = lambda report: family_of(run).media_features(run, engine.model, processor, readers, hashes, report)  # noqa: E731
    return _with_progress(compute, watchdog, "starting, computing features of media")


def open_batches(
    run: RunConfig, readers: dict[str, list[Reader]], collator: Collator, watchdog: Watchdog | None = None
) -> StepBatches:
    """This rank's batches. Ranks that draw tasks of their own, together with those that they share experts with, are a world of
    their own that takes its share of every batch: whichever ranks train a task, no sample comes twice in an epoch."""
    ep_size, groups = run.train.ep_size, world_size() // run.train.ep_size
    group, member = divmod(rank(), ep_size)
    schedule = build_schedule(run.train.schedule, run.tasks, run.train.seed, groups, group)
    tasks, share = run.tasks, dict(rank=rank(), world=world_size())
    if run.train.mixed:
        tasks = [task.model_copy(update={"batch_size": task.batch_size // groups}) for task in tasks]
        share = dict(rank=member, world=ep_size, first_key=group * max(task.batch_size for task in tasks))
    settings, lengths = run.data, _lengths(run, readers, collator, watchdog)
    return StepBatches(
        tasks, schedule, readers, collator, seed=settings.seed, window=settings.window, cache_mb=settings.cache_mb,
        decoding=settings.decoding, lengths=lengths, **share
    )


def _lengths(
    run: RunConfig, readers: dict[str, list[Reader]], collator: Collator, watchdog: Watchdog | None
) -> dict[str, list[SampleLengths]]:
    """Of the tasks that group samples by length, the lengths of their sources; indexes that are missing are made. All ranks call
    it."""
    tasks = {task.name: task for task in run.tasks if task.group_by_length}
    if not tasks:
        return {}
    cache = Storage(run.data.cache_dir, run.data.cache_gb).file_cache

    def opened(progress: Callable | None) -> dict[str, list[SampleLengths]]:
        parts = {name: part_of(collator.processor, task.measured) for name, task in tasks.items()}
        return {
            name: [open_lengths(reader, task.measured, parts[name], cache, progress) for reader in readers[name]]
            for name, task in tasks.items()
        }

    return _in_turn(opened, watchdog, "starting, measuring samples", "the lengths of samples cannot be found")


def _build(
    run: RunConfig, config: PreTrainedConfig, ds: dict, device: torch.device, *, fresh: bool
) -> tuple[TrainModule, list[str], dict[str, tuple[Path, str]], Partitioner | None]:
    """The module to train, lines that report what it took from elsewhere, and what came from where. A part of it that is large
    and comes from a folder arrives module by module; where it is `fresh`, not to be overwritten, ZeRO 3 takes it so, but for
    what is frozen and lies in no file as it is: that is to be written before the last result, if there is one, takes the
    rest."""
    family = family_of(run)
    assembly = on_main(lambda: family.assembly(run, config), "a part of the model cannot be loaded", every_rank=True)
    if assembly is None:
        return family.build(config, seed=run.train.seed, ep_size=run.train.ep_size), [], {}, None
    model, sources = assembly.model, assembly.sources() if fresh else {}
    freeze_others(model, run.train.trainable)
    partition = Partitioner(model, ds) if fresh and stage_of(ds) == 3 else None

    def settle(name: str, parameter: nn.Parameter) -> None:
        if partition is not None and (parameter.requires_grad or name in sources):
            partition(parameter)

    said = assembly.finish(Arrival(assembly.dtype_of(type_of(ds)), settle), read=fresh)
    return model, said, sources, partition


def _load_initial(
    run: RunConfig, model: TrainModule, processor, said: list[str], output_dir: Path
) -> dict[str, tuple[Path, str]]:
    """Load `train.init_from`, or where there is none the parts that the settings of the model name; returns what came from where.
    said: lines that report what was loaded before."""
    family = family_of(run)
    if run.train.init_from is None:
        lines, sources = on_main(lambda: family.load_parts(run, model), "a part of the model cannot be loaded", every_rank=True)
        said = said + lines
    else:
        load = lambda: family.load_initial(model, Path(run.train.init_from), processor)  # noqa: E731
        said, sources, full = on_main(load, "train.init_from cannot be loaded", every_rank=True)
        if full:
            said = [*said, f"  all of it, name by name: {output_dir / INITIAL}"]
            on_main(lambda: write_file(output_dir / INITIAL, full), "the report of train.init_from cannot be written")
    if is_main() and said:
        print("\n".join(said), flush=True)
    return sources


def compile_model(run: RunConfig, engine: Engine, batches: StepBatches, watchdog: Watchdog, step: int) -> CompiledBlocks:
    """Compile the encoder's blocks for every task's shapes, which takes minutes; `step` are done. All ranks call it."""
    first_steps = first_occurrences(batches)
    shapes = [(step, view) for name, step in first_steps.items() for view in range(len(run.task(name).all_views))]
    read = lambda: [_few(batches, step, view) for step, view in shapes]  # noqa: E731
    few = on_main(read, "a task cannot be compiled for", every_rank=True)

    def tiled() -> Iterator[Batch]:
        for batch in few:
            watchdog.progress(step, f"compiling {batch.task}")
            yield tile(batch, run.task(batch.task).batch_size // world_size()).to(engine.device)

    blocks = CompiledBlocks(engine.model, shapes=3 * len(shapes))
    blocks.warm(engine, tiled(), {name: run.task(name).micro_batches for name in first_steps}, len(shapes))
    return blocks


def _few(batches: StepBatches, step: int, view: int) -> Batch:
    batch = batches.first_of(step, SAMPLES, view)
    if isinstance(batch, UserError):
        raise batch
    return batch
