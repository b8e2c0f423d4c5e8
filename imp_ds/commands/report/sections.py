"""What the page says of a run, section by section; each is HTML, "" where the run has nothing of it."""

import json
import math
from collections import Counter

from imp_ds.commands.report.charts import Curve, chart, shares
from imp_ds.commands.report.page import picture, safe, table
from imp_ds.commands.report.record import RunRecord
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric, by_kind, read_metric
from imp_ds.recipes import RECIPES, get_recipe
from imp_ds.train.interference import PICTURE
from imp_ds.train.recording.progress import duration
from imp_ds.train.run_folder import flat

_REJECTED = 10  # of the samples that were left out, named


def trained(record: RunRecord) -> str:
    """The run in a table: what, how far, how large, at what cost."""
    run, state, steps = record.run, record.state, record.run.train.steps
    seconds = record.value("train/seconds") or state.get("seconds")
    memory = record.value("train/peak_rank_gib") or max((line.get("memory_gib") or 0 for line in record.train), default=0)
    done = f"{record.step:,} of {steps:,} steps"
    rows = [
        ["state", f"finished after {done}" if record.is_finished else f"not finished (going on, or ended early): {done}"],
        ["model", f"{run.model.family}, {_model(run)}"],
        ["parameters", f"{record.parameters:,}" if record.parameters else "not known: no checkpoint yet"],
        ["ranks", f"{state['world_size']}, ep_size {state['ep_size']}, ZeRO {state['zero_stage']}" if state else "not known"],
        ["time in training", duration(seconds) if seconds else "not known"],
        ["model FLOPs", _flops(record)],
        ["peak memory of a rank", f"{memory:.2f} GiB" if memory else "not known"],
        ["skipped steps", f"{state.get('skipped', 0)}" if state else "not known"],
        ["data", run.data.root],
    ]
    if (step := record.value("best/step")) is not None:
        name = next(metric.name for metric in record.results if metric.name.startswith("best/") and metric.better)
        rows.append(["best checkpoint", f"step {step:.0f}, {name.removeprefix('best/')} = {record.value(name):.4g}"])
    tasks = [
        [task.name, ", ".join(f"{source.path} ({source.format})" for source in task.sources),
         ", ".join(objective.kind for objective in task.objectives), task.batch_size, _share(record, task.name)]
        for task in run.tasks
    ]  # fmt: skip
    return table(["what", ""], rows) + table(["task", "source", "objectives", "batch", "share of steps"], tasks, numbers=(3, 4))


def _model(run: RunConfig) -> str:
    """Its settings that are not the default's, in brief."""
    changed = run.model.model_dump(mode="json", exclude_defaults=True, exclude={"family"})
    plain = {name: value for name, value in changed.items() if isinstance(value, (int, float, str)) and len(str(value)) < 40}
    return ", ".join(f"{name} {value}" for name, value in list(plain.items())[:8]) or "as by default"


def _share(record: RunRecord, task: str) -> str:
    share = record.train[-1].get("shares", {}).get(task) if record.train else None
    return "" if share is None else f"{100 * share:.0f} %"


def _flops(record: RunRecord) -> str:
    """In all, and a second, by the log intervals that know it."""
    total = seconds = 0.0
    for before, line in zip([{"step": 0}, *record.train], record.train):
        if "tflops" in line:
            taken = line["step_seconds"] * (line["step"] - before["step"])
            total, seconds = total + 1e12 * line["tflops"] * taken, seconds + taken
    return f"{total:.3g} ({total / seconds / 1e12:.3g} TF/s)" if seconds else "not recorded"


def losses(record: RunRecord) -> str:
    """The loss of each task over steps: on training batches, and on validation, dashed."""
    curves = []
    for place, task in enumerate(record.run.tasks):
        points = [(line["step"], _value(line["tasks"][task.name]["loss"])) for line in record.train if task.name in line["tasks"]]
        curves.append(Curve(task.name, points, place))
        points = _points(record, f"validation/{task.name}/loss")
        curves.append(Curve(f"{task.name}, validation", points, place, dashed=True))
    return _row([chart("Loss by task", curves, "loss, nats")])


def scores(record: RunRecord) -> str:
    """Final scores in a table, beside the best of each on validation; and the curves of those that are shown at a glance."""
    final = [metric for metric in by_kind(record.results) if metric.better is not None and not metric.name.startswith("best/")]
    rows = []
    for metric in final:
        best = _best(_points(record, metric.name), metric)
        known = ["", ""] if best is None else [metric._replace(value=best[1]).written(), best[0]]
        rows.append([metric.name, metric.written(), *known])
    drawn: dict[str, dict[str, list]] = {}
    units: dict[str, str] = {}
    for line in _on_validation(record):
        for metric in _metrics(line):
            measure = metric.name.split("/")[-1]
            if metric.shown is not None and metric.better is not None and not metric.name.startswith("validation/"):
                title = " ".join(dict.fromkeys(f"{metric.shown.heading} {measure}".replace("_", " ").split()))
                units[title] = {"share": "%", "": measure}.get(metric.unit, metric.unit)
                value = metric.value * (100 if metric.unit == "share" else 1)
                drawn.setdefault(title, {}).setdefault(metric.of, []).append((line["step"], value))
    curves = {title: [Curve(name, of[name], place) for place, name in enumerate(of)] for title, of in drawn.items()}
    figures = [chart(f"{title}, validation", of, units[title]) for title, of in curves.items()]
    split = record.evaluations[-1]["split"] if record.evaluations else "validation"
    head = ["score", f"final ({split}; validation/: validation)", "best on validation", "at step"]
    return table(head, rows, numbers=(1, 2, 3)) + _row(figures)


def _best(points: list[tuple[int, float]], metric: Metric) -> tuple[int, float] | None:
    known = [(step, value) for step, value in points if math.isfinite(value)]
    pick = max if metric.better == "higher" else min
    return pick(known, key=lambda point: point[1]) if known else None


def _on_validation(record: RunRecord) -> list[dict]:
    return [line for line in record.evaluations if line["split"] == "validation"]


def _points(record: RunRecord, name: str) -> list[tuple[int, float]]:
    """(step, value on validation) of a metric."""
    return [(line["step"], _value(line["results"][name])) for line in _on_validation(record) if name in line["results"]]


def _metrics(line: dict) -> list[Metric]:
    return [read_metric(name, _value(value), line["metrics"][name]) for name, value in line["results"].items()]


def _value(value: float | None) -> float:
    return math.nan if value is None else value


def speed(record: RunRecord) -> str:
    """Samples and FLOPs a second, the gradient's norm and the learning rate."""
    def of(name: str, factor: float = 1.0) -> list[tuple[int, float]]:
        return [(line["step"], factor * _value(line[name])) for line in record.train if name in line]

    norms = []
    for place, task in enumerate(record.run.tasks):
        found = [(line["step"], line["tasks"].get(task.name, {}).get("grad_norm")) for line in record.train]
        norms.append(Curve(task.name, [(step, norm) for step, norm in found if norm is not None], place))
    return _row([
        chart("Speed", [Curve("samples/s", of("examples_per_s"), 0)], "samples/s"),
        chart("Model FLOPs a second, all ranks", [Curve("TF/s", of("tflops"), 1)], "TF/s"),
        chart("Share of the matrix peak", [Curve("of the peak measured at the start", of("mfu", 100), 2)], "%"),
        chart("Gradient norm", norms, "norm"),
        chart("Learning rate", [Curve("learning rate", of("learning_rate"), 3)], "learning rate"),
        chart("Waiting for data", [Curve("of the time of a step", of("data_wait_share", 100), 4)], "%"),
    ])  # fmt: skip


def experts(record: RunRecord) -> str:
    """Each expert's share by layer: of each modality at the end of training, and in the last evaluation by what was evaluated."""
    figures = []
    for modality, layers in (record.train[-1].get("experts", {}) if record.train else {}).items():
        rows = [layer["usage"] for layer in layers if isinstance(layer.get("usage"), list)]
        figures.append(shares(f"{modality}, training", [f"MoE layer {n}" for n in range(len(rows))], rows))
    for name, rows in (record.evaluations[-1].get("usage", {}) if record.evaluations else {}).items():
        figures.append(shares(f"{name}, evaluation", [f"MoE layer {n}" for n in range(len(rows))], rows))
    return _row(figures)


def interference(record: RunRecord) -> str:
    path = record.folder / PICTURE
    return f"<figure>{picture(path.read_bytes())}</figure>" if path.is_file() else ""


def answers(record: RunRecord) -> str:
    """The first of what each evaluation asked, and the model answered."""
    found = []
    for name, lines in record.answers.items():
        rows = [[line["prompt"], line["answer"], line.get("reference", "")] for line in lines]
        told = table(["asked", "answered", "reference"], rows)
        found.append(f"<details open><summary>{safe(name)}: {len(lines)} of {record.asked[name]:,}</summary>{told}</details>")
    return "".join(found)


def pictures(record: RunRecord) -> str:
    """The pictures of samples that TensorBoard has, as the model was fed them, and of what it made of them."""
    from imp_ds.train.recording.trackers.tensorboard import stored_pictures

    found = stored_pictures(record.folder / "tensorboard", ("samples/", "captions/"))
    return _row([f"<figure><h3>{safe(tag)}</h3>{picture(png)}</figure>" for tag, png in found.items()])


def rejected(record: RunRecord) -> str:
    """Which samples were left out, and why."""
    counts = Counter((line["source"], line["reason"]) for line in record.rejected)
    rows = [[source, reason, number] for (source, reason), number in counts.most_common()]
    named = [[line[name] for name in ("source", "key", "reason", "detail")] for line in record.rejected[:_REJECTED]]
    if not rows:
        return ""
    more = f"<details><summary>the first {len(named)}</summary>{table(['source', 'sample', 'reason', 'detail'], named)}</details>"
    return table(["source", "reason", "samples"], rows, numbers=(2,)) + more


def configuration(record: RunRecord) -> str:
    """What differs from the recipe of the run's name, or else from the defaults, and the whole."""
    own = flat(record.run.model_dump(mode="json"))
    try:
        recipe = get_recipe(record.run.name) if record.run.name in RECIPES else None
    except UserError:
        recipe = None
    if isinstance(recipe, RunConfig):
        other, heading = flat(recipe.model_dump(mode="json")), f"changed from the recipe {record.run.name}"
        rows = [[path, _json(other.get(path)), _json(own.get(path))] for path in own | other if own.get(path) != other.get(path)]
        shown = table(["field", "recipe", "here"], rows) or "<p>nothing</p>"
    else:
        heading, changed = "not as by default", flat(record.run.model_dump(mode="json", exclude_defaults=True))
        shown = table(["field", "here"], [[path, _json(value)] for path, value in changed.items()])
    text = json.dumps(record.run.model_dump(mode="json"), indent=2)
    everything = f"<details><summary>everything</summary><pre>{'<br>'.join(map(safe, text.splitlines()))}</pre></details>"
    return f"<details><summary>{safe(heading)}</summary>{shown}</details>{everything}"


def _json(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else text[:200] + " ..."


def environment(record: RunRecord) -> str:
    """Versions, as the newest checkpoint knows them, and what of the run could not be read."""
    versions = [[name, version] for name, version in record.state.get("versions", {}).items()]
    damaged = [[name, number] for name, number in record.damaged.items()]
    return table(["package", "version"], versions) + table(["left out, since damaged", "lines"], damaged, numbers=(1,))


def _row(figures: list[str]) -> str:
    shown = "".join(filter(None, figures))
    return f"<div class=row>{shown}</div>" if shown else ""
