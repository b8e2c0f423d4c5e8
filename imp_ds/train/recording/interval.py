"""The steps since the last log, averaged by task and by MoE layer; read from the device once, not once a step.

Shapes: E experts.
"""

from dataclasses import dataclass, field

import torch

# the fields of a RouterReport, as they are recorded
REPORTED = ("z_loss", "balance_loss", "usage", "dropped_fraction", "mean_combine_weight")


@dataclass
class StepRecord:
    """What one step, or the part of the ranks that had the task, measured; tensors are detached and still on their device.

    share: of the ranks that trained the task; examples, tokens, FLOPs and seconds are theirs, so that those of a step add up.
    """

    task: str
    values: dict[str, torch.Tensor | float]
    reports: dict[str, list]
    examples: int
    tokens: int
    seconds: float
    wait_seconds: float
    flops: float = 0.0
    share: float = 1.0


@dataclass
class Interval:
    """Collects steps; `summary` averages and forgets them."""

    records: list[StepRecord] = field(default_factory=list)

    def add(self, record: StepRecord) -> None:
        detach = lambda value: value.detach() if isinstance(value, torch.Tensor) else value  # noqa: E731
        record.values = {name: detach(value) for name, value in record.values.items() if value is not None}
        record.reports = {m: [type(r)(*map(detach, r)) for r in layers] for m, layers in record.reports.items()}
        self.records.append(record)

    def summary(self, peak_flops: float = 0.0) -> dict:
        """{"tasks": {task: {"steps", name: mean, "data_wait_share", "mfu"}}, "experts": {modality: [{field of a report: mean}]},
        "examples_per_s", "tokens_per_s", "step_seconds", "data_wait_share", "tflops", "mfu"}; rates count what all ranks did
        together.

        A task that a part of the ranks had counts as that part of a step. "mfu" is the model FLOPs of a task's steps over
        what `peak_flops` a second, of all ranks, would have done in their time, and "tflops" what they were a second, in 10^12;
        they are absent where what they are made of is not known.
        """
        host = _to_host([t for record in self.records for t in _tensors(record)])
        tasks, experts = {}, {}
        for record in self.records:
            values = tasks.setdefault(record.task, [])
            one = {name: next(host)[0] if isinstance(v, torch.Tensor) else float(v) for name, v in record.values.items()}
            values.append((record.share, one))
            for modality, layers in record.reports.items():
                experts.setdefault(modality, []).append([[next(host) for _ in report] for report in layers])
        seconds = max(sum(record.seconds for record in self.records), 1e-9)
        found = {
            "tasks": {task: {"steps": _steps(values), **_mean_dicts(values)} for task, values in tasks.items()},
            "experts": {modality: _mean_layers(calls) for modality, calls in experts.items() if calls[0]},
            "examples_per_s": sum(record.examples for record in self.records) / seconds,
            "tokens_per_s": sum(record.tokens for record in self.records) / seconds,
            "step_seconds": seconds / sum(record.share for record in self.records),
            "data_wait_share": sum(record.wait_seconds for record in self.records) / seconds,
        }
        found |= _speed(self.records, seconds, peak_flops)
        for task in tasks:
            own = [record for record in self.records if record.task == task]
            taken = max(sum(record.seconds for record in own), 1e-9)
            found["tasks"][task]["data_wait_share"] = sum(record.wait_seconds for record in own) / taken
            found["tasks"][task] |= _speed(own, taken, peak_flops)
        self.records = []
        return found


def _speed(records: list[StepRecord], seconds: float, peak_flops: float) -> dict[str, float]:
    """Model FLOPs a second, in 10^12, and over the peak, where known."""
    flops = sum(record.flops for record in records)
    if not flops:
        return {}
    return {"tflops": flops / seconds / 1e12} | ({"mfu": flops / (peak_flops * seconds)} if peak_flops else {})


def _tensors(record: StepRecord):
    """The record's tensors, in the order in which `summary` takes them back."""
    yield from (value for value in record.values.values() if isinstance(value, torch.Tensor))
    for layers in record.reports.values():
        for report in layers:
            yield from report


def _to_host(tensors: list[torch.Tensor]):
    """Each tensor as a list of floats, in order, by one transfer for each device."""
    flat = [tensor.float().reshape(-1) for tensor in tensors]
    devices = {tensor.device for tensor in flat}
    joined = {device: iter(torch.cat([t for t in flat if t.device == device]).tolist()) for device in devices}
    for tensor in flat:
        yield [next(joined[tensor.device]) for _ in range(tensor.numel())]


def _steps(values: list[tuple[float, dict]]) -> int | float:
    """How many steps of all ranks these (share, values) make; an integer where all ranks trained the task each time."""
    steps = sum(share for share, _ in values)
    return round(steps) if steps.is_integer() else steps


def _mean_dicts(values: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Mean of each name over the steps that have it, by their shares."""
    names = dict.fromkeys(name for _, step in values for name in step)
    columns = {name: [(share, step[name]) for share, step in values if name in step] for name in names}
    mean = lambda column: sum(share * value for share, value in column) / sum(share for share, _ in column)  # noqa: E731
    return {name: mean(column) for name, column in columns.items()}


def _mean_layers(calls: list[list[list[list[float]]]]) -> list[dict]:
    """Means over calls, for each layer; a report is (z_loss, balance_loss, usage_E, dropped_fraction, mean_combine_weight)."""
    layers = []
    for reports in zip(*calls):
        columns = [torch.tensor(column).mean(0).tolist() for column in zip(*reports)]
        layers.append({name: values if name == "usage" else values[0] for name, values in zip(REPORTED, columns)})
    return layers
