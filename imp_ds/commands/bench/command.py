"""`imp_ds bench MODEL --suite NAME`: an exported model by the protocols of the field, on any number of ranks."""

import datetime
import importlib.metadata
import json
import time
from contextlib import nullcontext
from functools import cache
from pathlib import Path

from rich.console import Console

from imp_ds.commands.bench.picture import draw
from imp_ds.commands.bench.results import PICTURE, path_of, read_suite, write_all, write_suite
from imp_ds.commands.bench.suites import MTEB, Measured, check_name, measure, suite_run
from imp_ds.commands.evaluate import SPLITS, measured_run, results_table
from imp_ds.commands.exported_model import load_model, start_ranks
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.evaluation.harness.model_meta import folder_hash
from imp_ds.evaluation.metric import by_name
from imp_ds.families import family_of
from imp_ds.parallel.groups import all_agree, barrier, is_main, on_main
from imp_ds.terminal.stage_progress import StageProgress

_PACKAGES = ("torch", "transformers", "scikit-learn", "mteb")


def bench(
    model_path: Path, suites: list[str], output: Path | None = None, *, data: Path | None = None, split: str = "test",
    batch_size: int = 64, recipe: RunConfig | None = None, settings: list[str] = (),
) -> dict[str, float]:  # fmt: skip
    """Measure the exported model in the folder `model_path` by suites; write tables, JSON and a picture, and return the values.

    Args:
        suites: "zero-shot", "retrieval", "probe", "logistic" (of the evaluations of the model's run or of `recipe`), "mteb:own"
            (the zero-shot evaluations through mteb), "mteb:NAME" (a benchmark or a task of mteb).
        output: folder for the results; None: beside the model. A suite that it holds of the same model, data and evaluations
            is not measured again.
        data, split, batch_size, recipe, settings: as `imp_ds.commands.evaluate.evaluate` takes them.

    Every rank that a launcher started calls it, and rank 0 writes. Raises UserError before anything is measured for unknown
    suites, missing packages and evaluations that fit none of them.
    """
    start_ranks()
    if split not in SPLITS:
        raise UserError("unknown split", got=split, allowed=", ".join(SPLITS))
    run, _, _ = measured_run(model_path, data, recipe, list(settings))
    if family_of(run).kind != "imp":
        raise UserError("models that answer are measured by imp_ds eval and lmms-eval", got=f"family {family_of(run).kind}")
    suites = list(dict.fromkeys(map(check_name, suites)))
    for name in suites:
        suite_run(name, run)
    output = model_path.parent / f"{model_path.resolve().name}_bench" if output is None else output
    on_main(lambda: output.mkdir(parents=True, exist_ok=True), "the folder of the results cannot be made")
    loaded, weights, found = cache(lambda: load_model(model_path)), folder_hash(model_path), {}
    for name in suites:
        key = {"model": weights, "split": split, "root": str(run.data.root), "evaluations": _described(name, run)}
        found[name] = _suite(name, run, key, loaded, model_path, output, split, batch_size)
    if is_main():
        write_all(output, str(model_path), found)
        draw(
            [metric for measured in found.values() for metric in measured.metrics], output / PICTURE, f"{run.name}, {split} split"
        )
        print(f"wrote {output}: a file for each suite, results.json and {PICTURE}")
    barrier()
    return by_name(metric for measured in found.values() for metric in measured.metrics)


def _described(name: str, run: RunConfig) -> list[dict]:
    """The evaluations that a suite measures, in JSON; none for one that brings its own tasks."""
    if name.startswith(MTEB) and name != f"{MTEB}own":
        return []
    return [json.loads(record.model_dump_json()) for record in suite_run(name, run)[0].evaluations]


def _suite(
    name: str, run: RunConfig, key: dict, loaded, folder: Path, output: Path, split: str, batch_size: int
) -> Measured:  # fmt: skip
    """What was measured of a suite, now or before; rank 0 shows and keeps it."""
    before = on_main(lambda: read_suite(output, name, key), f"the results of {name} cannot be read")
    if not all_agree(before is None or not is_main()):
        if is_main():
            print(f"{name}: measured before, {path_of(output, name)}", flush=True)
            _show(name, run, before, split)
        return before or Measured([], {})
    begun = time.monotonic()
    with StageProgress() if is_main() else nullcontext() as report:
        measured = measure(name, run, loaded, folder, output / "mteb", split, batch_size, report)
    if is_main():
        facts = {
            "date": datetime.date.today().isoformat(), "seconds": round(time.monotonic() - begun, 1), "versions": _versions(),
        }  # fmt: skip
        write_suite(output, name, key, measured, facts)
        _show(name, run, measured, split)
    return measured


def _show(name: str, run: RunConfig, measured: Measured, split: str) -> None:
    where = "" if name.startswith(MTEB) and name != f"{MTEB}own" else f" on the {split} split of {run.data.root}"
    Console().print(results_table(measured.metrics, f"{name}: {run.name}{where}"))
    for of, reason in measured.left_out.items():
        print(f"not measured: {of} ({reason})")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found
