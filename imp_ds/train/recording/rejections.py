"""Samples that were left out of training: counted on all ranks alike, named in rejected.jsonl, judged against what is allowed.

rejected.jsonl holds one JSON object a line, {"step", "task", "source", "key", "reason", "detail"}, once for each sample, however
often an epoch comes back to it.
"""

from pathlib import Path

import torch.distributed as dist

from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.parallel.groups import world_size
from imp_ds.tasks import Rejection, Task
from imp_ds.train.recording.history import LineFile, cut_lines

FILE = "rejected.jsonl"
_JUDGED_FROM = 200  # samples of a source; a share of fewer says little
_REMEMBERED = 1 << 17  # samples that are not written twice; a run with more has other worries


class Rejections:
    """What was left out so far.

    Args:
        folder: of the run.
        tasks, readers: of the run; the readers give the sources their names.
        most: largest share of a source's samples that may be left out.
        writes: whether this rank keeps the file and `counts`.
        start_step: steps done; what the file says of later ones is removed.
        state: what `state` gave at that step.
    """

    def __init__(self, folder: Path, tasks: list[Task], readers: dict[str, list[Reader]], most: float, *, writes: bool,
                 start_step: int = 0, state: dict | None = None):  # fmt: skip
        self.most, self.writes, self.path = most, writes, Path(folder) / FILE
        self._shares = {task.name: _shares(task, readers[task.name]) for task in tasks}
        self._batch_sizes = {task.name: task.batch_size for task in tasks}
        # a sample is counted each time that it is drawn; all ranks have the same numbers
        self._drawn, self._left_out = ((state or {}).get(name, {}) for name in ("drawn", "left_out"))
        self.counts: dict[str, dict[str, int]] = {}
        self._known: set[tuple[str, str]] = set()
        if writes:
            self._lines = LineFile(self.path)
            for line in cut_lines(self.path, start_step, _rejection):
                self._remember(_rejection(line))

    def state(self) -> dict:
        """What a checkpoint keeps of it; it grows with the sources alone."""
        return {"drawn": self._drawn, "left_out": self._left_out}

    def add(
        self, step: int, mixture: dict[str, float], task: str, mine: tuple[Rejection, ...], any_rank: bool
    ) -> list[Rejection]:
        """Count a step that trained the tasks of `mixture`, {task: share of the ranks}, on this rank `task`, and left out `mine`
        here; `any_rank`: whether any rank left out something. All ranks call it.

        Returns what is new, on the rank that writes. Raises UserError, on all ranks, when too much of a source was left out.
        """
        for trained, part in mixture.items():
            for source, share in self._shares[trained].items():
                self._drawn[source] = self._drawn.get(source, 0.0) + part * share * self._batch_sizes[trained]
        if not any_rank:
            return []
        everyone = [(task, mine)] * world_size()
        if world_size() > 1:
            dist.all_gather_object(everyone, (task, mine))
        found = [(of_rank, rejection) for of_rank, of_it in everyone for rejection in of_it]
        for _, rejection in found:
            self._drawn[rejection.source] += 1
            self._left_out[rejection.source] = self._left_out.get(rejection.source, 0) + 1
        new = self._write(step, found) if self.writes else []
        self._judge([rejection for _, rejection in found])
        return new

    def close(self) -> None:
        """Close the file; called on every way out."""
        if self.writes:
            self._lines.close()

    def _write(self, step: int, found: list[tuple[str, Rejection]]) -> list[Rejection]:
        new = [(task, rejection) for task, rejection in dict.fromkeys(found) if self._remember(rejection)]
        self._lines.add([{"step": step, "task": task, **rejection._asdict()} for task, rejection in new])
        return [rejection for _, rejection in new]

    def _remember(self, rejection: Rejection) -> bool:
        """Count it, unless it is known; whether it was new."""
        name = (rejection.source, rejection.key)
        if name in self._known:
            return False
        if len(self._known) < _REMEMBERED:
            self._known.add(name)
        reasons = self.counts.setdefault(rejection.source, {})
        reasons[rejection.reason] = reasons.get(rejection.reason, 0) + 1
        return True

    def _judge(self, found: list[Rejection]) -> None:
        for rejection in found:
            left_out, drawn = self._left_out[rejection.source], self._drawn[rejection.source]
            if drawn >= _JUDGED_FROM and left_out > self.most * drawn:
                raise UserError(
                    f"too many samples of {rejection.source} cannot be used", got=f"{left_out} of {drawn:.0f}, the last one "
                    f"{rejection.key}: {rejection.reason} ({rejection.detail})",
                    allowed=f"data.max_rejected = {self.most:g} of a source's samples",
                    fix=f"{self.path} names them; repair the source, or --set data.max_rejected=...", shared=True,
                )  # fmt: skip


def _rejection(line: dict) -> Rejection:
    """What a line of the file says. Raises KeyError or TypeError for another's."""
    found = Rejection(line["source"], line["key"], line["reason"], line["detail"])
    if not all(isinstance(value, str) for value in found):
        raise TypeError("not texts")
    return found


def _shares(task: Task, readers: list[Reader]) -> dict[str, float]:
    total, shares = sum(source.weight for source in task.sources), {}
    for source, reader in zip(task.sources, readers, strict=True):
        shares[reader.name] = shares.get(reader.name, 0.0) + source.weight / total
    return shares
