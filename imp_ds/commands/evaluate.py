"""`imp_ds eval MODEL`: the zero-shot results of an exported model, as a table and as JSON. Needs no DeepSpeed."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imp_ds.commands.exported_model import load_model, read_run
from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators, write_lines
from imp_ds.evaluation import evaluate as run_evaluators
from imp_ds.evaluation.metric import Metric, by_kind, by_name
from imp_ds.evaluation.missing_splits import unscored, unscored_note
from imp_ds.evaluation.other_recipe import seen_by
from imp_ds.families import family_of
from imp_ds.terminal.stage_progress import StageProgress
from imp_ds.written_files import write_result

SPLITS = ("train", "validation", "test")


def evaluate(
    model_path: str | Path,
    data: str | Path | None = None,
    split: str = "test",
    batch_size: int = 64,
    output: str | Path | None = None,
    *,
    recipe: RunConfig | None = None,
    settings: list[str] = [],
) -> dict[str, float]:
    """Evaluate the model in the folder `model_path` by its run configuration; print a table and return the values.

    Args:
        model_path: a folder that `export` wrote: model, processor and run_config.json.
        data: the corpus; None takes the one that the model was trained on.
        split: "train", "validation" or "test".
        batch_size: rows encoded at once.
        output: JSON file for the results, or None; beside it, in OUTPUT.answers.jsonl, what was asked and answered.
        recipe: a run whose data and evaluations are taken instead of the model's own; of the model's classification heads those
            are measured whose task it has too, with as many classes.
        settings: changes "path=value" of the recipe, or else of the model's run, as `--set` has them.

    Raises UserError when the folder is not a complete exported model, the corpus is missing, or the output cannot be written.
    """
    if split not in SPLITS:
        raise UserError("unknown split", got=split, allowed=", ".join(SPLITS))
    if batch_size < 1:
        raise UserError("the batch size is not positive", got=batch_size, allowed="1 or more")
    output = None if output is None else _check_output(Path(output))
    run, heads_of, notes = measured_run(Path(model_path), data, recipe, settings)
    print("".join(f"{note}\n" for note in notes), end="", flush=True)
    model, processor = load_model(Path(model_path))
    heads_of = family_of(run).served_tasks(model.config, [task.name for task in run.tasks] if heads_of is None else heads_of)
    without = unscored_note(unscored(run, split, heads_of), split)
    with StageProgress() as report:
        evaluators = build_evaluators(run, processor, split, batch_size=batch_size, heads_of=heads_of, report=report)
        if not evaluators:
            raise UserError(
                "there is nothing to evaluate",
                got=f"no evaluations in {Path(model_path) / FILE_NAME if recipe is None else 'the recipe'}, "
                f"and {without or 'no head of classes'}",
                fix="--split train, validation or test; or add evaluations",
            )  # fmt: skip
        metrics = run_evaluators(model, evaluators)
    Console().print(results_table(metrics, f"{run.name} on the {split} split of {run.data.root}"))
    if without is not None:
        print(without)
    results = by_name(metrics)
    if output is not None:
        write_result(output, json.dumps(results, indent=2) + "\n")
        print(f"wrote {output}: {len(results)} values")
        if count := write_lines(answers := output.with_suffix(".answers.jsonl"), evaluators):
            print(f"wrote {answers}: {count} questions with their answers")
    return results


def measured_run(
    model_path: Path, data: str | Path | None, recipe: RunConfig | None, settings: list[str]
) -> tuple[RunConfig, list[str] | None, list[str]]:
    """The run of an exported model as it is measured, with the data and the evaluations that are asked for (arguments as of
    `evaluate`); the tasks whose heads are measured, None: all; and lines on those that are not. Raises UserError."""
    run = read_run(model_path)
    if recipe is None:
        run, heads_of, notes = run.override(settings), None, []
    else:
        run, heads_of, notes = seen_by(run, recipe.override(settings))
    if data is not None:
        run = run.model_copy(update={"data": run.data.model_copy(update={"root": str(data)})})
    return run, heads_of, notes


def results_table(metrics: list[Metric], title: str) -> Table:
    """One row for each metric; those of a kind together, scores first."""
    table = Table(title=title)
    for heading, justify in (("measure", "left"), ("of", "left"), ("value", "right")):
        table.add_column(heading, justify=justify)
    previous = None
    for metric in by_kind(metrics):
        kind, evaluation, *measure = [*metric.name.split("/"), "", ""]
        measure = list(filter(None, measure))
        if previous not in (None, (kind, evaluation)) and len(measure) > 1:
            table.add_section()
        previous = (kind, evaluation)
        what = f"{kind.replace('_', '-')} {' '.join(measure).replace('_', ' ')}".strip()
        table.add_row(what, evaluation, metric.written())
    return table


def _check_output(path: Path) -> Path:
    """Before the work, not after it: the folder is there and nothing else bears the name."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError("the results cannot be written there", got=path, allowed="a file in a folder that exists")
    return path
