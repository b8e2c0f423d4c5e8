"""Saving in the background: training waits for a copy in memory, a thread of each rank writes it.

Ranks meet in the staging folder alone, never in a collective call, so a save can wait for a slow disk, fail or hang while
training goes on. Each rank writes its files, then a small list of them; rank 0 publishes when all lists are there. The
folder of checkpoints must be one that all nodes share.
"""

import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import torch.distributed as dist

from imp_ds.errors import UserError
from imp_ds.parallel.groups import is_main, on_main, raise_shared, rank, world_size
from imp_ds.train.checkpoint import files
from imp_ds.train.checkpoint.frozen import Frozen
from imp_ds.train.checkpoint.publish import prune, publish
from imp_ds.train.checkpoint.snapshot import Snapshot


@dataclass(frozen=True)
class Written:
    """How a save ended, as rank 0 knows it: seconds of the whole and those that training waited, bytes of this rank."""

    step: int
    seconds: float
    waited_s: float
    size: int
    problem: str | None


@dataclass
class _Job:
    """One save on its way. The thread sets `ended`, and `problem` before it."""

    step: int
    state: dict
    staging: Path
    previous: Path | None  # staging folder of the save before: a rank that was late may have made it again
    timeout_s: float
    started: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    ended: float | None = None
    problem: str | None = None
    given_up: bool = False
    reported: bool = False
    thread: threading.Thread | None = None

    def check(self) -> None:
        """Called by the thread wherever it can stop: the snapshot may belong to the next save already."""
        if self.given_up or time.monotonic() > self.started + self.timeout_s:
            raise TimeoutError(f"not done after {self.timeout_s:g} s; is the folder shared by all nodes, is a disk hanging?")

    def wait(self) -> None:
        """Wait until it has ended; after its time it is given up, even if its thread hangs in the disk."""
        self.thread.join(max(0.0, self.started + self.timeout_s + 1.0 - time.monotonic()))
        if self.thread.is_alive():
            self.given_up = True
            self.problem = f"rank {rank()} was not done after {self.timeout_s:g} s"
            self.ended = time.monotonic()


class Writer:
    """Saves the checkpoints of one engine; all ranks make one, and call `save` and `wait` together.

    Args:
        engine: an `imp_ds.train.engine.engine.Engine`; its host memory for snapshots is taken now (see `Snapshot`).
        output_dir: the run's folder, on storage that all nodes share.
        keep: the newest so many checkpoints stay, and the one that the `state` of the last save calls the best ("best", "step").
        milestone_every: those of a multiple of it stay for ever; 0: none.
        timeout_s: a save that takes longer has failed. Ranks wait for each other that long in `wait`: let the process
            group's time limit be longer.
        frozen: where the parameters lie that the engine does not train (`refer_to_frozen`); None: it trains all.

    Raises UserError, on every rank, when the folder of checkpoints cannot be made.
    """

    def __init__(
        self, engine, output_dir: Path, *, keep: int, milestone_every: int = 0, timeout_s: float = 600.0,
        frozen: Frozen | None = None,
    ):  # fmt: skip
        self.engine, self.root = engine, Path(output_dir) / files.FOLDER
        self.keep, self.milestone_every, self.timeout_s = keep, milestone_every, timeout_s
        self.frozen = frozen or Frozen()
        untrained = {name for name, parameter in engine.model.named_parameters() if not parameter.requires_grad}
        assert untrained == self.frozen.index.keys(), "nothing is known of where some frozen parameters lie"
        on_main(self._take_folder, "the checkpoint folder cannot be made")
        # a rank of an earlier start may still be writing into its staging folder: names are never used twice
        token = [uuid4().hex[:8]]
        if world_size() > 1:
            dist.broadcast_object_list(token, src=0)
        self._token, self._count, self._job = token[0], 0, None
        self._snapshot = Snapshot(engine)

    def _take_folder(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(self.root)

    def save(self, step: int, state: dict) -> None:
        """Save the engine as of `step` steps done, and `state` (what JSON can hold), in the background.

        Waits for a save that is still on its way, then for the copy in memory. Never raises for a disk.
        """
        start = time.monotonic()
        before = self._job
        if before is not None:
            before.wait()
            self.poll()
        self._snapshot.take(self.engine)
        self._count += 1
        staging = self.root / f"{files.STAGING}{files.folder_name(step)}-{self._token}-{self._count}"
        self._job = job = _Job(step, state, staging, before and before.staging, self.timeout_s)
        job.thread = threading.Thread(target=self._work, args=(job, rank(), world_size()), daemon=True, name="checkpoint")
        job.thread.start()
        job.waited_s = time.monotonic() - start

    def poll(self) -> Written | None:
        """What became of the last save, once, when it has ended; rank 0 prints it as one line. No exchange between ranks."""
        job = self._job
        if job is None or job.reported:
            return None
        if time.monotonic() > job.started + job.timeout_s + 1.0:
            job.wait()
        if job.ended is None:
            return None
        job.reported = True
        written = Written(job.step, job.ended - job.started, job.waited_s, self._snapshot.size, job.problem)
        if is_main():
            self._print(written)
        return written

    def _print(self, written: Written) -> None:
        name = files.folder_name(written.step)
        if written.problem is None:
            print(f"checkpoint {name}: written in {written.seconds:.1f} s, training waited {written.waited_s:.2f} s", flush=True)
        else:
            print(f"checkpoint {name} failed, the one before stays: {written.problem}", file=sys.stderr, flush=True)

    def wait(self) -> Path | None:
        """Block until the last save is published, and return its folder; None when there was none. All ranks call it.

        Raises UserError, the same on all ranks, if it failed on any of them.
        """
        job = self._job
        if job is None:
            return None
        job.wait()
        self.poll()
        problem = None
        if job.problem is not None:
            problem = UserError(
                "the checkpoint could not be written", got=f"{self.root / files.folder_name(job.step)}: {job.problem}",
                fix="make room or mend the disk; the checkpoint before is untouched",
            )  # fmt: skip
        try:
            raise_shared(problem)
        finally:  # all ranks have ended: nobody makes it again
            if is_main():
                shutil.rmtree(job.staging, ignore_errors=True)
        return self.root / files.folder_name(job.step)

    def _work(self, job: _Job, own: int, world: int) -> None:
        """The thread of one save."""
        try:
            if own == 0 and job.previous is not None:
                shutil.rmtree(job.previous, ignore_errors=True)
            self._write_part(job, own)
            if own == 0:
                final = publish(job.staging, job.step, job.state, world, self.frozen, job.check)
                prune(final, self.keep, self.milestone_every, (job.state.get("best") or {}).get("step"))
        except Exception as error:  # whatever it is, training goes on; the line that is printed reports it
            job.problem = str(error) if isinstance(error, (OSError, UserError)) else f"{type(error).__name__}: {error}"
            self._clear(job, own)
        job.ended = time.monotonic()

    def _write_part(self, job: _Job, own: int) -> None:
        job.staging.mkdir(parents=True, exist_ok=True)
        listed, places = {}, {}
        for kind, tensors in self._snapshot.files().items():
            name = files.file_name(kind, own)
            listed[name] = files.write_safetensors(job.staging / name, tensors, job.check)
            entries = self._snapshot.entries.get(kind, {})
            places |= {key: [e.shape, e.start, e.start + e.numel, name] for key, e in entries.items()}
        job.check()
        files.write_json(files.part_path(job.staging, own), {"files": listed, "tensors": places})

    def _clear(self, job: _Job, own: int) -> None:
        """Give back the room of a save that failed here; rank 0 takes the whole folder, others report to rank 0."""
        if own == 0:
            shutil.rmtree(job.staging, ignore_errors=True)
            return
        for kind in self._snapshot.files():
            (job.staging / files.file_name(kind, own)).unlink(missing_ok=True)
        try:
            files.failure_path(job.staging, own).write_text(job.problem)
        except OSError:  # not even that: rank 0 will give up by itself
            pass
