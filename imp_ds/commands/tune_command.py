"""`imp_ds tune MODEL EVALUATION`: an exported model is tuned to what an evaluation measures, on a part of its data.

It is a run as any other, in a folder of its own: what is watched, saved and resumed is so here too. Before it, the model as it is
is measured; after it, the tuned model is exported.
"""

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imp_ds.commands.export import export
from imp_ds.commands.exported_model import load_model, read_run
from imp_ds.commands.tuning import Tuning, tuning_run
from imp_ds.config import RunConfig
from imp_ds.data.sources import has_split
from imp_ds.evaluation import build_evaluators
from imp_ds.evaluation import evaluate as run_evaluators
from imp_ds.evaluation.metric import Metric, by_name
from imp_ds.families.imp.model_folder import exported_config, load_processor
from imp_ds.parallel.groups import is_main
from imp_ds.train.recording.final_results import read_results
from imp_ds.train.trainer import BEFORE, train

MODEL = "model"  # of a tuning's folder: the tuned model


def tune(
    model: Path, evaluation: str, tuning: Tuning, output_dir: Path, *, source: RunConfig | None = None, settings: list[str] = (),
    ds_path: Path | None = None, resume: str | None = None, allow_changes: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Tune the exported model in the folder `model`, and write run, scores and the tuned model (`model/`) to `output_dir`.

    Args:
        evaluation: name of an evaluation that names classes, of the model's run or of `source`.
        source: a configuration that names the evaluation and the data; None: the model's own run.
        settings: "path=value" changes of it, as --set gives them: data.root=DIR, evaluations.NAME.views..., train.log_every=...
        ds_path, resume, allow_changes: as `imp_ds.train.trainer.train` takes them.

    Every rank that a launcher started calls it. Returns the scores on the test split (validation where there is none), "before/"
    those of the model as it was; on the other ranks nothing. Raises UserError as `tuning_run` and `train`.
    """
    run = read_run(model)
    exported_config(model)  # refuses a model of another family
    source = (run if source is None else source).override(settings)
    tokenizer = load_processor(model).tokenizer
    tuned = tuning_run(model, run, evaluation, tuning, tokenizer, source)
    before = lambda: scores_before(model, run, source, evaluation)  # noqa: E731
    train(tuned, output_dir, ds_path, resume, before=before, allow_changes=allow_changes)
    if int(os.environ["RANK"]):
        return {}
    if not (output_dir / MODEL).exists():
        export(output_dir, output_dir / MODEL)
    metrics = read_results(output_dir)
    results = by_name(metrics)
    Console().print(comparison(metrics, f"{tuning.method} tuning of {model} on {samples(results)} samples"))
    return results


def scores_before(model: Path, run: RunConfig, source: RunConfig, evaluation: str) -> list[Metric]:
    """What the model scores as it is, on the split of the final scores. `run`: its own, whose tasks gates get. All ranks
    call it."""
    if is_main():
        print(f"measuring {model} as it is", flush=True)
    record = next(record for record in source.evaluations if record.name == evaluation)
    run = run.model_copy(update={"data": source.data, "evaluations": [record]})
    split = "test" if has_split(source.data.root, record.source, "test") else "validation"
    network, processor = load_model(model)
    return run_evaluators(network, build_evaluators(run, processor, split, heads_of=()))


def samples(results: dict[str, float]) -> int:
    """How many samples a run was trained on, by its results."""
    return int(sum(value for name, value in results.items() if name.startswith("train/samples/")))


def comparison(metrics: list[Metric], title: str) -> Table:
    """A row for each score that was taken before or after."""
    table = Table(title=title)
    for heading, justify in (("measure", "left"), ("before", "right"), ("after", "right")):
        table.add_column(heading, justify=justify)
    written = {metric.name: metric.written() for metric in metrics if metric.better is not None}
    for name in dict.fromkeys(name.removeprefix(f"{BEFORE}/") for name in written):
        table.add_row(name, *(written.get(key, "") for key in (f"{BEFORE}/{name}", name)))
    return table
