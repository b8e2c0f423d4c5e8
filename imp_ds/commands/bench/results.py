"""What `imp_ds bench` writes: a file for each suite, by which it is not measured again; all scores under the names that
CLIP_benchmark has; a table and a picture.
"""

import json
import re
from pathlib import Path

from imp_ds.commands.bench.suites import Measured
from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric, read_metric
from imp_ds.json_files import read_json
from imp_ds.written_files import write_result

RESULTS, PICTURE = "results.json", "results.png"
_NAMES = {"top1": "acc1", "top5": "acc5", "mean_per_class_recall": "mean_per_class_recall", "logistic_all": "lp_acc1"}
_TASKS = {"zero_shot": "zeroshot_classification", "retrieval": "zeroshot_retrieval", "probe": "linear_probe", "mteb": "mteb"}
_MEASURE = re.compile(r"^(.+)_(\d+|all)$")  # of a probe: the classifier, and how many samples of each class it has seen


def path_of(output: Path, suite: str) -> Path:
    """The file of a suite."""
    return output / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', suite).strip('_')}.json"


def read_suite(output: Path, suite: str, key: dict) -> Measured | None:
    """What was measured before by the same model on the same data; None: nothing. Raises UserError for a damaged file."""
    path = path_of(output, suite)
    if not path.is_file():
        return None
    fix = f"delete {path}: the suite is measured again"
    found = read_json(path, dict, fix)
    if found.get("key") != key:
        return None
    try:
        metrics = [read_metric(entry["name"], entry["value"], entry) for entry in found["metrics"]]
        return Measured(metrics, dict(found["left_out"]))
    except (TypeError, ValueError, LookupError) as error:
        raise UserError("the results of a suite are damaged", got=f"{path}: {error}", fix=fix) from None


def write_suite(output: Path, suite: str, key: dict, measured: Measured, facts: dict) -> None:
    """Keep what was measured; `facts`: date, seconds, versions."""
    metrics = [{"name": metric.name, "value": metric.value, **metric.facts()} for metric in measured.metrics]
    content = {"suite": suite, "key": key, **facts, "metrics": metrics, "left_out": measured.left_out}
    write_result(path_of(output, suite), json.dumps(content, indent=2) + "\n")


def write_all(output: Path, model: str, found: dict[str, Measured]) -> Path:
    """All scores: an entry for each kind and evaluation, under the names of CLIP_benchmark where it has one."""
    entries: dict[tuple[str, str], dict[str, float]] = {}
    for metric in (metric for measured in found.values() for metric in measured.metrics):
        kind, of, *measure = metric.name.split("/")
        measure = "/".join(measure)
        entries.setdefault((kind, of), {})[_NAMES.get(measure, measure)] = metric.value
    listed = [
        {"dataset": of, "model": model, "task": _TASKS.get(kind, kind), "metrics": metrics}
        for (kind, of), metrics in entries.items()
    ]
    return write_result(output / RESULTS, json.dumps(listed, indent=2) + "\n")


def probe_curves(metrics: list[Metric]) -> dict[str, list[tuple[int, float, float]]]:
    """Of each evaluation and classifier, "image, knn": (samples of each class, accuracy, spread), in ascending order."""
    values, found = {metric.name: metric.value for metric in metrics}, {}
    for name, value in values.items():
        kind, of, *measure = name.split("/")
        parts = _MEASURE.match(measure[0]) if kind == "probe" and len(measure) == 1 else None
        if parts is None or parts[2] == "all":
            continue
        classifier = re.sub(r"^knn\d+$", "knn", parts[1]).replace("_", " ")
        if parts[1] in ("least_squares", f"knn{parts[2]}"):  # of the neighbours as many as there are samples of a class
            spread = values.get(f"{name}_spread", 0.0)
            found.setdefault(f"{of}, {classifier}", []).append((int(parts[2]), value, spread))
    return {name: sorted(points) for name, points in found.items()}
