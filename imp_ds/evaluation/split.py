"""What evaluators read: the rows of a split, dealt to the ranks, with their labels and captions. Each source is opened once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from imp_ds.data.decoding import decode
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.evaluation_batches import evaluation_batches
from imp_ds.data.order.subset import Subset
from imp_ds.data.reader import Reader
from imp_ds.data.sources import labels, open_reader
from imp_ds.errors import UserError
from imp_ds.evaluation.zero_shot import ClassPrompts, load_classes
from imp_ds.evaluation_record import Evaluation
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.modality import TextNeeds, Wanted
from imp_ds.modalities.sides import JOINED
from imp_ds.modalities.views import Views
from imp_ds.parallel.groups import rank, world_size
from imp_ds.registry import EVALUATORS
from imp_ds.tasks import Batch, Source

Report = Callable[[str, int, int], None]
CACHE_MB = 256


class Split:
    """One split of a run's sources.

    Args:
        run: the RunConfig.
        processor: of the model.
        name: "train", "validation" or "test".
        batch_size: of each rank.
        report: called with (what is evaluated, rows read, rows of the split).
    """

    def __init__(self, run, processor, name: str, batch_size: int = 64, report: Report | None = None):
        self.run, self.processor, self.name, self.batch_size, self.report = run, processor, name, batch_size, report
        self._readers: dict[str, Reader] = {}
        self._evaluators: dict[tuple[str, str], object] = {}

    def reader(self, source: Source) -> Reader:
        """The rows of a source. Raises UserError when it has no such split or cannot be used."""
        known = source.model_dump_json()
        if known not in self._readers:
            self._readers[known] = open_reader(self.run.data.root, source, self.name, self.run.data)
        return self._readers[known]

    def labels(self, source: Source) -> torch.Tensor:
        """Class index of each row, int64 [rows]; -1 for a row that cannot be read."""
        return torch.from_numpy(labels(self.reader(source)))

    def captions(self, source: Source) -> list[list[str]]:
        """The captions of each row; none of a row that cannot be read."""
        reader, found = self.reader(source), []
        for row in range(len(reader)):
            try:
                found.append(reader.read(row)["text"])
            except BadSample:
                found.append([])
        return found

    def first_captions(self, source: Source) -> list[str]:
        """The first caption of each row; an empty text for a row that cannot be read, which is left out of what is measured."""
        return [captions[0] if captions else "" for captions in self.captions(source)]

    def batches(
        self, source: Source, views: Views, what: str, *, text: TextNeeds = TextNeeds(), rows: Sequence[int] | None = None
    ) -> Callable[[], Iterable[Batch]]:
        """A function that returns this rank's batches of a source anew (`data.loading.evaluation_batches`). `what` is reported.

        rows: numbers of those that are read, which "index" then counts; None: all.
        """
        reader = self.reader(source) if rows is None else Subset(self.reader(source), rows)
        return partial(
            evaluation_batches, reader, Collator(self.processor), views, batch_size=self.batch_size, rank=rank(),
            world=world_size(), decoding=self.run.data.decoding, text=text,
            report=None if self.report is None else partial(self.report, what),
        )  # fmt: skip

    def frames(self, source: Source, views: Views, row: int) -> np.ndarray:
        """The frames of a row as `views.vision` has them, uint8 [T, H, W, 3]. Raises BadSample."""
        wanted = Wanted(settings=self.run.data.decoding)
        return decode(self.reader(source).read(row), Views(vision=views.vision), wanted=wanted)["vision"]

    def evaluator(self, kind: str, record: Evaluation):
        """The evaluator of that kind for an evaluation: made once, so that others may use what it has read."""
        if (kind, record.name) not in self._evaluators:
            self._evaluators[kind, record.name] = EVALUATORS[kind].build(self, record)
        return self._evaluators[kind, record.name]


class CachedBatches:
    """Batches that are made once and cached while they take at most `most_mb` megabytes together."""

    def __init__(self, make: Callable[[], Iterable[Batch]], most_mb: int = CACHE_MB):
        self.make, self.most_bytes = make, most_mb << 20
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, total = [], 0
        for batch in self.make():
            tensors = [t for inputs in batch.inputs.values() for t in inputs.values()]
            total += sum(t.numel() * t.element_size() for t in tensors)
            kept = [*kept, batch] if total <= self.most_bytes else []
            yield batch
        if total <= self.most_bytes:
            self._kept = kept


def used_views(record: Evaluation) -> Views:
    """Only what the evaluation reads is decoded: its modality and target, captions where there are any (prompts come later)."""
    used = {modality: getattr(record.views, modality) for modality in {*record.modality.split(JOINED), record.target} - {"text"}}
    return Views(**used, text=record.views.text if record.source.text is not None else None)


def class_prompts(run, record: Evaluation, reader: Reader) -> ClassPrompts | None:
    """The class names of `classes`, or those of the source in the evaluation's own templates; None where it names no classes."""
    if record.classes is not None:
        return load_classes(Path(run.data.root) / "classes.json", record.classes)
    if not record.templates:
        return None
    if reader.class_names is None:
        raise UserError(
            f"evaluation {record.name}: there are no class names for its templates", got=f"{reader.name} names no classes",
            fix="set source.label_names to the list of names, or to a JSON file with it",
        )  # fmt: skip
    return ClassPrompts(reader.class_names, record.templates)
