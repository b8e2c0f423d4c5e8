"""One feed-forward layer, forward and backward: a mixture of experts against a dense layer of the same active arithmetic.

    python benchmarks/moe_layer.py --out benchmarks/results/moe_layer_cpu.md
    python benchmarks/moe_layer.py --ranks 2
    python benchmarks/moe_layer.py --device cuda --dtype bfloat16 --widths 768 1024 --experts 8 16 32 64 --tokens 65536 \\
        --out benchmarks/results/moe_layer_gpu.md

All contestants (moe_contestants.py) take turns in one process, so that whatever else the machine does falls on all of them; the
ratios to the dense layer are those of the best times (on one CPU thread, of the time it had the CPU). Memory is measured in a
process of its own for each (on a GPU in the same). On a GPU a time is that of steps one after another, as layers follow each
other in a model, and some are timed compiled too. With --ranks, the experts are spread over that many processes, and the share
of the time spent in the exchange of tokens is printed instead. On two quiet cores about 4 minutes.
"""

import argparse
import ctypes
import datetime
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
EXAMPLE_TOKENS = 256
WARM_UP = 3
GPU_STEPS = 5  # one after another and one before them, so that the host is ahead of the GPU
COMPILED = ", compiled"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--widths", type=int, nargs="+", default=[384], help="D; the feed-forward has 4 D")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=4096, help=f"a multiple of {EXAMPLE_TOKENS}")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--ranks", type=int, default=1, help="processes over which the experts are spread")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--kernels", type=Path, help="write to this file which kernels ours spends its time in (cuda)")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # one contestant's memory, asked of a child process
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.ranks > 1 and "RANK" not in os.environ:
        torchrun = str(Path(sys.executable).parent / "torchrun")
        command = [torchrun, "--standalone", "--nproc_per_node", str(options.ranks), *sys.argv]
        raise SystemExit(subprocess.run(command, env={"OMP_NUM_THREADS": str(options.threads), **os.environ}).returncode)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch and DeepSpeed look for one
    import torch

    torch.set_num_threads(options.threads)
    join_ranks()
    if options.peak_of:
        print("peak", peak_mib(options, options.peak_of, options.widths[0], options.experts[0]))
    elif options.ranks > 1:
        exchange_shares(options)
    else:
        text = ""
        for part in report(options):
            print(part, flush=True)
            text += part
            if options.out:
                options.out.write_text(text)
        if options.kernels:
            options.kernels.write_text(kernel_tables(options))
    torch.distributed.destroy_process_group()


def join_ranks() -> None:
    """DeepSpeed's layers want a process group, if only of one."""
    from imp_ds.train.engine.engine import start_process_group

    alone = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    for name, value in alone.items() if "RANK" not in os.environ else ():
        os.environ[name] = value
    start_process_group(120)


def problem(options, width: int):
    """Tokens [B, L, D], and the gradient of the output."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (options.tokens // EXAMPLE_TOKENS, EXAMPLE_TOKENS, width)
    x, direction = (torch.randn(shape, generator=generator).to(options.device, getattr(torch, options.dtype)) for _ in range(2))
    return x.requires_grad_(), direction


def step(layer, x, direction) -> None:
    """Forward and backward; the router's losses take part, as in training."""
    import torch

    y, loss = layer(x)
    torch.autograd.backward([y] if loss is None else [y, loss], [direction] if loss is None else [direction, None])


def clear(layer, x) -> None:
    x.grad = None
    layer.zero_grad(set_to_none=True)


def timed(layer, x, direction) -> tuple[float, float]:
    """Milliseconds of one step: of the clock, and of this thread on the CPU; on a GPU, until all was launched."""
    import torch

    clear(layer, x)
    if x.is_cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        step(layer, x, direction)
        clear(layer, x)
        host = time.perf_counter()
        start.record()
        for _ in range(GPU_STEPS):
            step(layer, x, direction)
            clear(layer, x)
        end.record()
        host = time.perf_counter() - host
        end.synchronize()
        return start.elapsed_time(end) / GPU_STEPS, host * 1e3 / GPU_STEPS
    wall, thread = time.perf_counter(), time.thread_time()
    step(layer, x, direction)
    return (time.perf_counter() - wall) * 1e3, (time.thread_time() - thread) * 1e3


def times(options, width: int, experts: int) -> dict[str, list[tuple[float, float]]]:
    """Each contestant's timed steps, in order of rounds; who begins a round moves on."""
    import torch
    from moe_contestants import CONTESTANTS

    layers = {name: built(options, name, width, experts) for name in CONTESTANTS}
    if options.device == "cuda":
        torch.compiler.reset()
        layers |= {name + COMPILED: compiled(layer) for name, layer in layers.items() if CONTESTANTS[name].compiled}
    names = list(layers)
    x, direction = problem(options, width)
    taken = {name: [] for name in names}
    for turn in range(options.rounds + WARM_UP):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(timed(layers[name], x, direction))
            clear(layers[name], x)
    return {name: steps[WARM_UP:] for name, steps in taken.items()}


def built(options, name: str, width: int, experts: int):
    """A contestant at a size."""
    import torch
    from moe_contestants import build

    return build(name, width, 4 * width, experts, options.device, getattr(torch, options.dtype))


def compiled(layer):
    import torch

    return torch.compile(layer, dynamic=False, fullgraph=True)


def peak_mib(options, name: str, width: int, experts: int) -> float:
    """What its first step adds at most to the memory of this process (or of the device): activations, gradients, buffers."""
    import torch

    for size in (96, width):  # a small one first, for what libraries allocate once
        layer = built(options, name, size, experts)
        x, direction = problem(options, size)
        if size == 96:
            step(layer, x, direction)
            clear(layer, x)
    gc.collect()
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(layer, x, direction)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what malloc still holds would hide that it is used again
    Path("/proc/self/clear_refs").write_text("5")  # Linux counts the peak from here
    before = status_kib("VmRSS")
    step(layer, x, direction)
    return (status_kib("VmHWM") - before) / 1024


def status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def ask_peak(options, name: str, width: int, experts: int) -> float:
    """On a CPU in a process of its own, since malloc gives little back; a GPU's allocator counts exactly."""
    if options.device == "cuda":
        return peak_mib(options, name, width, experts)
    given = dict(device=options.device, dtype=options.dtype, widths=width, experts=experts, tokens=options.tokens)
    command = [sys.executable, __file__, "--peak-of", name, "--threads", str(options.threads)]
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "MASTER_PORT")}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return float(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("peak ")))


def kernel_tables(options) -> str:
    """The kernels of our layer, compiled, at each size."""
    from kernels import kernel_table

    text = ""
    for width in options.widths:
        x, direction = problem(options, width)
        for experts in options.experts:
            layer = compiled(built(options, "imp_ds", width, experts))
            text += kernel_table(f"Width {width}, {experts} experts", lambda: (step(layer, x, direction), clear(layer, x)))
    return text


def report(options) -> Iterator[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    lines = [
        "# A mixture-of-experts layer against a dense feed-forward of the same active arithmetic",
        "",
        f"{datetime.date.today()}, {machine(options)}; Python {platform.python_version()}, {packages}.",
        f"{options.tokens:,} tokens, {options.dtype}, forward and backward with the router and its loss, {options.rounds} rounds "
        "in which all take turns.",
        f"Ratio: best {'CPU ' if on_one_thread(options) else ''}time against the dense layer's"
        f"{', the faster of plain and compiled' if options.device == 'cuda' else ''}. Peak: what the step adds to the "
        f"memory of {'the GPU' if options.device == 'cuda' else 'a process of its own'}.",
        f"`python benchmarks/moe_layer.py {' '.join(sys.argv[1:])}` makes this file; `moe_contestants.py` has the layers.",
    ]
    yield "\n".join(lines) + "\n"
    for width in options.widths:
        for experts in options.experts:
            title = f"## Width {width}, feed-forward {4 * width}, {experts} experts"
            yield "\n".join(["", title, "", *table(options, width, experts)]) + "\n"


def on_one_thread(options) -> bool:
    """Whether a thread's own time is the whole of the work: then it is the steadier clock."""
    return options.device == "cpu" and options.threads == 1


def machine(options) -> str:
    if options.device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads}"


def table(options, width: int, experts: int) -> list[str]:
    taken = times(options, width, experts)
    clock = "launched in ms" if options.device == "cuda" else "best CPU ms"
    lines = [f"| layer | best ms | median ms | {clock} | ratio | peak MiB |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    best = {name: min(thread if on_one_thread(options) else wall for wall, thread in steps) for name, steps in taken.items()}
    best_of = lambda layer: min(best[name] for name in best if name.removesuffix(COMPILED) == layer)  # noqa: E731
    dense = best_of("dense feed-forward")
    peaks = {name: ask_peak(options, name, width, experts) for name in taken if not name.endswith(COMPILED)}
    for name, steps in taken.items():
        wall, thread = zip(*steps)
        on_cpu = f"{min(thread):.2f}" if options.device == "cuda" or on_one_thread(options) else "-"
        peak = f"{peaks[name]:,.0f}" if name in peaks else ""
        lines.append(
            f"| {name} | {min(wall):.2f} | {statistics.median(wall):.2f} | {on_cpu} | {best[name] / dense:.2f} | {peak} |"
        )
    return lines + ["", *goals(options, width, experts, {name: best_of(name) / dense for name in peaks}, peaks)]


def goals(options, width: int, experts: int, ratios: dict, peaks: dict) -> list[str]:
    """What the project wants of these figures, and whether they have it."""
    ours, native = ratios["imp_ds"], "deepspeed.moe.layer.MoE"
    if options.device == "cuda":
        wanted = [(f"at most 1.15 times the dense layer: {ours:.2f}", ours <= 1.15)]
        for peer in ("transformers grouped_mm", "DeepSpeed AutoEP"):
            wanted.append((f"1.3 times as fast as {peer}: {ratios[peer] / ours:.2f}", ratios[peer] / ours >= 1.3))
    else:
        limit = {8: 1.10, 32: 1.25}.get(experts) if width == 384 else None
        wanted = [(f"at most {limit:.2f} times the dense layer: {ours:.2f}", ours <= limit)] if limit else []
        wanted.append((f"not behind {native}: {ours:.2f} against {ratios[native]:.2f}", ours <= ratios[native]))
        ours, theirs = peaks["imp_ds"], peaks[native]
        wanted.append((f"less memory than it: {ours:.0f} against {theirs:.0f} MiB", ours < theirs))
    return [f"- {'met' if met else 'NOT met'}: {text}" for text, met in wanted]


def exchange_shares(options) -> None:
    """Print how much of a step goes by inside the all-to-alls, waiting for the other ranks included."""
    import torch.distributed as dist

    for width in options.widths:
        for experts in options.experts:
            totals, inside, exchanges = exchange_times(options, width, experts)
            share = statistics.median(part / total for part, total in zip(inside, totals))
            if dist.get_rank() == 0:
                print(
                    f"D {width}, {experts} experts over {options.ranks} ranks, {options.tokens:,} tokens each: a step takes "
                    f"{statistics.median(totals):.1f} ms, {share:.1%} of it in {exchanges} exchanges"
                )


def exchange_times(options, width: int, experts: int) -> tuple[list[float], list[float], int]:
    """Milliseconds of each step, of the exchanges in it, and how many these are."""
    import torch
    import torch.distributed as dist
    from moe_contestants import Spread

    from imp_ds.parallel import exchange

    full = built(options, "imp_ds", width, experts)
    layer = Spread(full, options.ranks, dist.get_rank())
    x, direction = problem(options, width)
    send, spans, totals, inside = exchange._send, [], [], []

    def watched(*arguments):
        wait()
        start = time.perf_counter()
        arrived = exchange._wait(send(*arguments))
        wait()
        spans.append((time.perf_counter() - start) * 1e3)
        return arrived

    def wait():
        if x.is_cuda:
            torch.cuda.synchronize()

    with mock.patch.object(exchange, "_send", watched):
        for _ in range(options.rounds + WARM_UP):
            dist.barrier()
            spans.clear()
            totals.append(timed(layer, x, direction)[0])
            inside.append(sum(spans))
    return totals[WARM_UP:], inside[WARM_UP:], len(spans)


if __name__ == "__main__":
    main()
