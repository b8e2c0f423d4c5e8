"""Where the time of a function on a GPU goes: its kernels by time, and how long the GPU had nothing to do."""

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

LONGEST = 30


def kernel_table(title: str, function: Callable[[], None], repeats: int = 3) -> str:
    """Markdown: the kernels of `function` in milliseconds a call, after one call that does not count."""
    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as recorded:
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - start) * 1e3 / repeats
    kernels = [event for event in recorded.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in kernels) / 1e3 / repeats
    lines = [f"## {title}", "", f"{wall:.2f} ms a call under the profiler, kernels {busy:.2f} ms.", ""]
    lines += ["| ms | calls | kernel |", "| ---: | ---: | --- |"]
    for event in kernels[:LONGEST]:
        name = event.key.replace("|", "/")[:110]
        lines.append(f"| {event.self_device_time_total / 1e3 / repeats:.3f} | {event.count / repeats:.0f} | `{name}` |")
    return "\n".join(lines) + "\n\n"
