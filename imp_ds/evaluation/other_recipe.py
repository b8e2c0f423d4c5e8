"""A trained model seen by another recipe: its evaluations and sources, and of the model's own run what the model has learned."""

from imp_ds.config import RunConfig
from imp_ds.evaluation.task_heads import heads
from imp_ds.modalities.views import data_settings


def seen_by(run: RunConfig, recipe: RunConfig) -> tuple[RunConfig, list[str], list[str]]:
    """The run of a model with the data and the evaluations of a recipe; the tasks whose heads can be measured on the recipe's
    sources; and, of each task whose cannot although the names agree, a line that says why.

    A head can be where the recipe has a task of its name with the same classes: as many of the same modality. What the model
    was trained to read (tokenizer, spectrogram, views of its tasks) stays the model's.
    """
    given = {task.name: task for task in recipe.tasks}
    tasks, measured, notes = [], [], []
    for task in run.tasks:
        other = given.get(task.name)
        own, others = _classes(task), _classes(other) if other is not None else []
        if own and len(own) == len(others) and all(map(_agree, own, others)):
            task = task.model_copy(update={"source": other.source, "additional_sources": other.additional_sources})
            measured.append(task.name)
        elif own and others:
            notes.append(f"task {task.name}: its head is left out, with {_counts(own)}; the recipe's has {_counts(others)}")
        tasks.append(task)
    kept = {"tokenizer": run.data.tokenizer, "vocab_size": run.data.vocab_size}
    kept |= {name: getattr(run.data, name) for name in data_settings()}  # as the model was trained
    changes = {"data": recipe.data.model_copy(update=kept), "evaluations": recipe.evaluations, "tasks": tasks}
    return run.model_copy(update=changes), measured, notes


def _classes(task) -> list[tuple[str, int | None]]:
    return [(objective.modality, objective.num_classes) for _, objective, _ in heads(task)]


def _agree(own: tuple[str, int], other: tuple[str, int | None]) -> bool:
    """Whether a head is one of the recipe's; a number of classes that is left to the data may be any, since labels have names."""
    return own[0] == other[0] and other[1] in (own[1], None)


def _counts(classes: list[tuple[str, int]]) -> str:
    return ", ".join(f"{count} classes of {modality}" for modality, count in classes)
