"""Tasks of mteb that are made of one's own evaluations: each sample stands in them by its file, which this package reads, so that
neither torchcodec nor a copy of the data is needed.

A task gives the accuracy that `imp_ds eval` gives of the same evaluation, to the sample: the same rows, seen by the same views,
against the same classes, each with all its prompts.
"""

from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.evaluation.split import Split, class_prompts
from imp_ds.evaluation_record import Evaluation
from imp_ds.modalities.media import BadSample, Media

_TYPES = {"image": "ZeroShotClassification", "video": "VideoZeroshotClassification", "audio": "AudioZeroshotClassification"}


def has_zero_shot(record: Evaluation) -> bool:
    """Whether a task of zero-shot classification can be made of an evaluation."""
    classes = record.classes is not None or record.templates
    pair = record.head == "pair" and record.evaluator is None and record.captioner is None
    return bool(classes) and pair and record.source.label is not None and _kind(record) is not None


def zero_shot_task(split: Split, record: Evaluation):
    """(the task of mteb, the prompts of each of its candidate labels). Rows that cannot be read or have no label are left out.

    Raises UserError where the evaluation names no classes, or has no usable row.
    """
    import datasets
    from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification

    kind, reader = _kind(record), split.reader(record.source)
    classes = class_prompts(split.run, record, reader)
    if kind is None or classes is None:
        raise UserError(f"evaluation {record.name} makes no task of mteb", allowed="images, videos or audio with named classes")
    rows = [(row, label) for row, label in enumerate(split.labels(record.source).tolist()) if label >= 0]
    media = [(medium, label) for row, label in rows if (medium := _medium(reader, row, record.modality)) is not None]
    if not media:
        raise UserError(f"evaluation {record.name}: no sample can be used", got=reader.name)

    class ZeroShot(AbsTaskZeroShotClassification):
        metadata = _metadata(record, kind, split)
        input_column_name, label_column_name = kind, "label"

        def load_data(self, num_proc=None, **kwargs) -> None:
            columns = {kind: [medium for medium, _ in media], "label": [label for _, label in media]}
            self.dataset = datasets.DatasetDict({split.name: datasets.Dataset.from_dict(columns)})
            self.data_loaded = True

        def get_candidate_labels(self) -> list[str]:
            return classes.names

    count = len(classes.templates)
    texts = classes.prompts()
    prompts = {name: texts[place * count : (place + 1) * count] for place, name in enumerate(classes.names)}
    return ZeroShot(), prompts


def _kind(record: Evaluation) -> str | None:
    """mteb's name for what is evaluated; None for what it has no name for."""
    if record.modality == "vision":
        view = record.views.vision
        return None if view is None else "image" if view.frames == 1 else "video"
    return record.modality if record.modality == "audio" else None


def _medium(reader: Reader, row: int, modality: str) -> dict | None:
    """The file or the bytes of a row's medium; None where it cannot be read."""
    try:
        medium: Media = reader.read(row)[modality]
        if medium.path is not None:
            medium.open().close()
            return {"path": str(medium.path), "bytes": None}
        with medium.open() as file:
            return {"path": medium.name, "bytes": file.read()}
    except BadSample:
        return None


def _metadata(record: Evaluation, kind: str, split: Split):
    from mteb.abstasks.task_metadata import TaskMetadata

    modality = {"image": "i", "video": "v", "audio": "a"}[kind]
    return TaskMetadata(
        name=f"imp_ds_{record.name}", description=f"{record.name} of {split.run.name}, by the prompts of its classes",
        reference=None, type=_TYPES[kind], category=f"{modality}2t", modalities=[kind, "text"],
        dataset={"path": record.source.path, "revision": "local"}, eval_splits=[split.name], eval_langs=["eng-Latn"],
        main_score="accuracy", date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None, dialect=None,
        sample_creation=None, bibtex_citation="",
    )  # fmt: skip
