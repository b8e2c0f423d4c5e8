"""The readers of a run: every distinct source of its tasks, opened once; and all of their captions."""

from collections.abc import Callable, Iterator

from imp_ds.data.order.subset import class_fraction
from imp_ds.data.reader import Reader
from imp_ds.data.sources import captions, labels, open_reader, text_roles
from imp_ds.data.sources.format import format_of
from imp_ds.modalities.text.answer_mask import MASK_TEXT


def open_corpus(run, split: str = "train", progress: Callable | None = None) -> dict[str, list[Reader]]:
    """Task name -> the readers of its sources on a split of the corpus at `run.data.root`.

    Tasks that read the same source share its reader. Indexes that are not there yet are built, which may take long: `progress`
    (stage, done, total) reports how far it is. Raises UserError for a source that cannot be read, and a fraction of one that
    leaves a class without samples.
    """
    readers = {}

    def reader_of(source) -> Reader:
        known = source.model_dump_json(exclude={"weight", "captions_ignore"})
        if known not in readers:
            reader = open_reader(run.data.root, source, split, run.data, progress)
            some = source.fraction < 1 and split == "train"
            readers[known] = class_fraction(reader, labels(reader), source.fraction, run.data.seed) if some else reader
        return readers[known]

    every = [source for task in run.tasks for source in task.sources]
    for source in sorted(every, key=lambda source: format_of(source).asks_hub):
        reader_of(source)  # those of a hub last: a wrong data.root is found before one is asked
    return {task.name: [reader_of(source) for source in task.sources] for task in run.tasks}


def text_readers(readers: dict[str, list[Reader]]) -> list[Reader]:
    """Of the readers of `open_corpus` the distinct ones whose source has texts."""
    distinct = {id(reader): reader for of_task in readers.values() for reader in of_task}
    return [reader for reader in distinct.values() if text_roles(reader.source)]


def all_captions(readers: dict[str, list[Reader]]) -> Iterator[str]:
    """Every caption of every distinct source that has some."""
    for reader in text_readers(readers):
        for caption in captions(reader):
            yield caption.replace(MASK_TEXT, " ")  # a mask is no word
