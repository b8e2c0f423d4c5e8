"""Evaluation, exact over the whole split: every modality against text by zero-shot classification and retrieval, and text by its
hidden words; and captions against those of the corpus.

An evaluator has `run(model) -> iterator of (name, value)`; names are flat, such as zero_shot/image/top1.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch

from imp_ds.data.collation import Collator
from imp_ds.data.decoding import Wanted, decode
from imp_ds.data.evaluation_batches import evaluation_batches
from imp_ds.data.samples import BadSample, Reader
from imp_ds.data.sources import has_split, labels, open_reader
from imp_ds.errors import UserError
from imp_ds.evaluation.captioning import CaptioningEvaluator
from imp_ds.evaluation.evaluator import KeptBatches, TextEvaluator
from imp_ds.evaluation.heads import HeadEvaluator, heads
from imp_ds.evaluation.masked_language import MaskedLanguageEvaluator
from imp_ds.evaluation.named_classes import NamedClassesEvaluator
from imp_ds.evaluation.other_recipe import labels_of_head
from imp_ds.evaluation.zero_shot import ClassPrompts, load_classes
from imp_ds.parallel.groups import rank, world_size
from imp_ds.tasks import Evaluation, Source, Task, Views

Evaluator = TextEvaluator | MaskedLanguageEvaluator | NamedClassesEvaluator | CaptioningEvaluator | HeadEvaluator
Report = Callable[[str, int, int], None]
_KEPT_MB = 256  # of a head's batches, from one evaluation to the next


def build_evaluators(
    run, processor, split: str, *, batch_size: int = 64, heads_of: Collection[str] | None = None, report: Report | None = None
) -> list[Evaluator]:
    """The evaluators of `run.evaluations` on a split ("train", "validation", "test") of the corpus at `run.data.root`, and of the
    classification heads of each task whose sources have that split; of the tasks named in `heads_of` alone, where it is given.

    `batch_size` is that of each rank; `report` is called with (what is evaluated, rows read, rows of the split). Raises UserError
    when the corpus or its class names are missing or unusable.
    """
    evaluators = []
    for record in run.evaluations:
        reader = open_reader(run.data.root, record.source, split, run.data)
        if record.captioner is not None:
            evaluators.append(_captioning_evaluator(run, processor, record, reader, batch_size, report))
        elif record.modality == "text" and record.head == "pair":
            task, captions = run.task(record.name), first_captions(reader)
            evaluators.append(MaskedLanguageEvaluator(record, task, captions, processor.tokenizer, batch_size=batch_size))
        else:
            evaluators.append(_text_evaluator(run, processor, record, reader, batch_size, report))
            if tuned := _tuned_task(run, record):
                evaluators.append(NamedClassesEvaluator(evaluators[-1], tuned))
    for task in run.tasks if heads_of is None else map(run.task, heads_of):
        if heads(task) and all(has_split(run.data.root, source, split) for source in task.sources):
            evaluators += _head_evaluators(run, processor, task, split, batch_size, report)
    return evaluators


def evaluated_sources(run) -> list[Source]:
    """The sources that are read at each evaluation while a run trains."""
    with_heads = [task for task in run.tasks if heads(task)]
    held_out = [task for task in with_heads if all(has_split(run.data.root, source, "validation") for source in task.sources)]
    return [record.source for record in run.evaluations] + [source for task in held_out for source in task.sources]


def _head_evaluators(run, processor, task: Task, split: str, batch_size: int, report) -> list[HeadEvaluator]:
    found = []
    readers = [open_reader(run.data.root, source, split, run.data) for source in task.sources]
    label_R = [torch.from_numpy(labels(reader)) for reader in readers]
    for place, objective, name in heads(task):
        views = Views(**{objective.modality: getattr(task.views, objective.modality)})
        shape = _shape(run, batch_size, report, f"head {name}")
        make = [partial(evaluation_batches, reader, Collator(processor), views, **shape) for reader in readers]
        labels_R = [labels_of_head(label, r.class_names, objective.names) for label, r in zip(label_R, readers)]
        parts = [(KeptBatches(batches, _KEPT_MB // len(readers)), label) for batches, label in zip(make, labels_R)]
        found.append(HeadEvaluator(task, place, parts, name))
    return found


def _shape(run, batch_size: int, report: Report | None, what: str) -> dict:
    """How the rows of a split are dealt to this rank."""
    told = None if report is None else partial(report, what)
    return dict(batch_size=batch_size, rank=rank(), world=world_size(), decoding=run.data.decoding, report=told)


def _text_evaluator(run, processor, record: Evaluation, reader: Reader, batch_size: int, report) -> TextEvaluator:
    shape = _shape(run, batch_size, report, record.name) | {"marked": record.answer_at == "mark"}
    asked = record.modality == "text" or record.answer_at == "mark"  # the text is what is read

    def frames(row):
        return decode(reader.read(row), Views(vision=record.views.vision), wanted=Wanted(settings=run.data.decoding))["vision"]

    return TextEvaluator(
        record,
        lambda: evaluation_batches(reader, Collator(processor), _used_views(record), **shape),
        processor.tokenizer,
        labels=None if record.source.label is None else torch.from_numpy(labels(reader)),
        classes=class_prompts(run, record, reader),
        captions=None if record.source.text is None or asked else first_captions(reader),
        batch_size=batch_size,
        frames=frames if record.modality == "vision" else None,
    )


def _captioning_evaluator(run, processor, record: Evaluation, reader: Reader, batch_size: int, report) -> CaptioningEvaluator:
    shape = _shape(run, batch_size, report, record.name)
    batches = lambda: evaluation_batches(reader, Collator(processor), _used_views(record), **shape)  # noqa: E731
    return CaptioningEvaluator(record, run.task(record.captioner), batches, all_captions(reader), processor.tokenizer)


def first_captions(reader: Reader) -> list[str]:
    """The first caption of each row; an empty text for a row that cannot be read, which is left out of what is measured."""
    return [captions[0] if captions else "" for captions in all_captions(reader)]


def all_captions(reader: Reader) -> list[list[str]]:
    """The captions of each row; none of a row that cannot be read."""
    found = []
    for row in range(len(reader)):
        try:
            found.append(reader.read(row)["text"])
        except BadSample:
            found.append([])
    return found


def _tuned_task(run, record: Evaluation) -> Task | None:
    """The task of the run that learns the classes of the evaluation by a head of its own, beside their names; None: there is
    none."""
    tuned = (task for task in run.tasks if any(objective.is_tuned for objective in task.objectives))
    return next((task for task in tuned if task.name == record.task), None)


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


def _used_views(record: Evaluation) -> Views:
    """Only what the evaluation reads is decoded: its modality and target, captions where there are any (prompts come later)."""
    used = {modality: getattr(record.views, modality) for modality in {record.modality, record.target} - {"text"}}
    return Views(**used, text=record.views.text if record.source.text is not None else None)


def evaluate(model, evaluators: list[Evaluator]) -> dict[str, float]:
    """All values of all evaluators by name. Every rank calls this and gets the same; the model's mode is restored.

    model: an ImpForPreTraining, or an ImpModel where no evaluator reads heads.

    Gradients are off by no_grad, not inference_mode: what an engine keeps from a forward (ZeRO 3 keeps small parameters
    gathered) must stay usable in training.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            encoder = getattr(model, "imp", model)
            runs = (evaluator.run(model if evaluator.reads_heads else encoder) for evaluator in evaluators)
            return {name: value for run in runs for name, value in run}
    finally:
        model.train(training)


def expert_usage(evaluators) -> dict[str, list[list[float]]]:
    """Share of each expert in each MoE layer over the last run, {evaluation name or "text": [layer][expert]}; {} when dense."""
    usage, text = {}, []
    for evaluator in (found for found in evaluators if found.usage):
        own = evaluator.usage.get(evaluator.record.modality)
        if own:
            usage[evaluator.record.name] = own
        if evaluator.usage.get("text"):
            text.append(torch.tensor(evaluator.usage["text"]))
    if text:
        usage["text"] = torch.stack(text).mean(0).tolist()
    return usage
