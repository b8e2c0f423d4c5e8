"""The README.md of an exported model (a Hugging Face card): how it was trained, what it scored, and what its family adds."""

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from imp_ds.config import RunConfig
from imp_ds.evaluation.metric import Metric
from imp_ds.evaluation.picture import PICTURE

BEFORE = "before/"  # how the names of what was measured before a tuning begin


class Card(NamedTuple):
    """What a family adds about a model. about: what it is, under the heading; sections: Markdown before the training, such as how
    it is loaded; shape: rows (what, value) of the table of the training; further: Markdown before the scores; scored: how the
    scores were measured, in a few words."""

    about: str
    tags: list[str]
    sections: list[str] = []
    shape: list[tuple[str, Any]] = []
    further: list[str] = []
    scored: str = ""
    pipeline_tag: str | None = None


def write_card(
    folder: str | Path,
    run: RunConfig,
    card: Card,
    results: list[Metric],
    versions: dict[str, str],
    *,
    experts: int,
    steps: int,
    world_size: int,
    parameters: int,
    examples: int | None = None,
    tokens: int | None = None,
    seconds: float | None = None,
    split: str = "test",
) -> Path:
    """Write `folder`/README.md and return its path.

    Args:
        results: measured on `split`; may be empty. What has no direction, as a count, is left out.
        versions: package -> version, as it was trained.
        experts: of a layer; 0: none.
        steps, world_size, examples, tokens, seconds: what training took; None leaves the line out.
        parameters: of the exported model.
    """
    folder = Path(folder)
    tags = [*card.tags, "deepspeed", *(["mixture-of-experts"] if experts else [])]
    data = ModelCardData(
        library_name="transformers", pipeline_tag=card.pipeline_tag, model_name=run.name, tags=list(dict.fromkeys(tags))
    )
    took = dict(steps=steps, world_size=world_size, parameters=parameters, examples=examples, tokens=tokens, seconds=seconds)
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {run.name}",
        card.about,
        *card.sections,
        "## Training",
        _training(run, card, experts, **took),
        _tasks(run),
        *card.further,
        "## Scores",
        _scores(results, split, card.scored),
        *([f"![accuracy by task, and the experts that each modality uses]({PICTURE})"] if (folder / PICTURE).is_file() else []),
        "## Versions",
        table(("package", "version"), sorted(versions.items())),
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8")
    return path


def _training(
    run: RunConfig, card: Card, experts: int, *, steps: int, world_size: int, parameters: int, examples: int | None,
    tokens: int | None, seconds: float | None,
) -> str:  # fmt: skip
    rows = [
        ("recipe", run.name),
        ("parameters", f"{parameters:,}"),
        *card.shape,
        ("optimizer steps", f"{steps:,} of {run.train.steps:,}" if steps != run.train.steps else f"{steps:,}"),
        ("schedule of tasks", run.train.schedule),
        ("examples", None if examples is None else f"{examples:,}"),
        ("tokens", None if tokens is None else f"{tokens:,}"),
        ("time of the steps", None if seconds is None else f"{seconds:,.0f} s"),
        ("peak learning rate", f"{run.optimizer.peak_rate:g}"),
        ("weight decay", f"{run.optimizer.weight_decay:g}"),
        ("experts in a layer", experts or None),
        ("ranks", world_size),
        ("ranks that share the experts (ep_size)", run.train.ep_size if experts else None),
        ("seed", run.train.seed),
    ]
    return table(("what", "value"), [row for row in rows if row[1] is not None])


def _tasks(run: RunConfig) -> str:
    often = "interval" if run.train.schedule == "rotation" else "weight"
    learned = {task.name: ", ".join(objective.describe() for objective in task.objectives) for task in run.tasks}
    rows = [(f"`{task.name}`", learned[task.name], task.batch_size, getattr(task, often)) for task in run.tasks]
    return table(("task", "objective", "batch", often), rows)


def _scores(results: list[Metric], split: str, how: str) -> str:
    scores = [metric for metric in results if metric.better is not None and not metric.name.startswith(BEFORE)]
    rows = [(f"`{metric.name}`", metric.written()) for metric in scores]
    if not rows:
        return "Not measured."
    return f"On the {split} split{how and f'; {how}'}.\n\n{table(('measure', 'value'), rows)}"


def table(headings: tuple, rows: list) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(headings)} |", "|" + " --- |" * len(headings)]
    return "\n".join(lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows])
