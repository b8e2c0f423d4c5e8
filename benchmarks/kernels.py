"""Where the time of a function on a GPU goes: to which kernels, to waits between which of them, and to what on the host."""

import collections
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

LONGEST, GAPS, HOST = 60, 12, 30  # rows of the tables
SHORT_US = 5.0  # one kernel follows another so soon where the host is ahead


def kernel_table(title: str, function: Callable[[], None], repeats: int = 3) -> str:
    """Markdown: the kernels of `function` in milliseconds a call, what the GPU waited for, and what the host was busy with, after
    one call that does not count; a host that is watched launches more slowly than else."""
    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as recorded:
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - start) * 1e3 / repeats
    events, host = recorded.events(), collections.defaultdict(list)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            host[_name(event)].append(event.self_cpu_time_total)
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    # a name with # is a mark that some function leaves, not a kernel
    kernels = sorted((event for event in on_gpu if "#" not in event.name), key=lambda event: event.time_range.start)
    busy, waits = collections.defaultdict(list), _waits(kernels)
    for event in kernels:
        busy[_name(event)].append(event.time_range.elapsed_us())
    kernels_ms, waits_ms = (sum(map(sum, times.values())) / 1e3 / repeats for times in (busy, waits))
    total = f"{wall:.2f} ms a call under the profiler, kernels {kernels_ms:.2f} ms, waits {waits_ms:.2f} ms."
    tables = [*_table("kernel", busy, LONGEST, repeats), "", *_table("wait", waits, GAPS, repeats)]
    tables += ["", *_table("host", host, HOST, repeats)]
    return "\n".join([f"## {title}", "", total, "", *tables, "", ""])


def _waits(kernels: list) -> dict[str, list[float]]:
    """Microseconds in which nothing ran, by what ran before and after."""
    found = collections.defaultdict(list)
    end, last = kernels[0].time_range.start, ""
    for event in kernels:
        if event.time_range.start - end > SHORT_US:
            found[f"{last[:50]} ... {_name(event)[:50]}"].append(event.time_range.start - end)
        if event.time_range.end > end:
            end, last = event.time_range.end, _name(event)
    return found


def _name(event) -> str:
    return event.name.replace("|", "/")[:110]


def _table(head: str, times: dict[str, list[float]], rows: int, repeats: int) -> list[str]:
    lines = [f"| ms | calls | {head} |", "| ---: | ---: | --- |"]
    for name, spans in sorted(times.items(), key=lambda item: -sum(item[1]))[:rows]:
        lines.append(f"| {sum(spans) / 1e3 / repeats:.3f} | {len(spans) / repeats:.0f} | `{name}` |")
    return lines
