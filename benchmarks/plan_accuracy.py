"""What `imp_ds plan` predicts against what runs measure: step time, growth of memory, communication.

    python benchmarks/plan_accuracy.py [--out benchmarks/results/plan_accuracy.md] [--ranks 1 2]

For each number of ranks it measures this machine's hardware profile, then trains each case below in fresh launches (torchrun,
float32 on a CPU, bf16 on a GPU) on made-up batches of three alternating tasks, and compares. Some minutes on two quiet cores.

Step time is the mean over tasks of the medians. Growth of memory is the highest resident (GPU: allocated) size during a step
above that before the model was built, when a tiny model had been trained so that libraries were loaded. Communication is timed
in steps of its own, in which all ranks meet before each collective, so that it holds no waiting for a rank that is late.
"""

import argparse
import ctypes
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# ranks, hidden size, experts, ep_size, ZeRO stage
CASES = [
    *((1, 128, 0, 1, 1), (1, 384, 0, 1, 2), (1, 128, 8, 1, 2), (1, 256, 8, 1, 1), (1, 256, 8, 1, 3)),
    *((2, 384, 0, 1, 1), (2, 256, 0, 1, 3), (2, 256, 8, 1, 2), (2, 256, 8, 2, 2), (2, 384, 8, 2, 1), (2, 256, 8, 2, 3)),
]
STEPS, WARM = 10, 3
COLLECTIVES = (
    "all_reduce", "all_gather_into_tensor", "all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single",
    "all_to_all_single", "broadcast",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worker", nargs=3, metavar=("WHAT", "CASE", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        what, case, file = options.worker
        if what == "profile":
            from imp_ds.planning.measure.engine import command

            command(Path(file))
        else:
            {"time": measure_time, "memory": measure_memory}[what](CASES[int(case)], Path(file))
        sys.stdout.flush()
        os._exit(0)  # gloo's threads sometimes abort in a normal end, after all is done
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in options.ranks:
            profile = Path(folder) / f"profile_{ranks}.json"
            launch(ranks, "profile", 0, profile)
            for number, case in enumerate(CASES):
                if case[0] == ranks:
                    found = {}
                    for what in ("time", "memory"):  # apart, as memory is measured in a way that costs time
                        file = Path(folder) / f"{what}_{number}.json"
                        launch(ranks, what, number, file)
                        found |= json.loads(file.read_text())
                    rows.append((case, predict(case, profile), found))
                    print(*compare(*rows[-1]), flush=True)
    text = table(rows)
    print(text)
    if options.out:
        options.out.write_text(text)


def launch(ranks: int, what: str, case: int, file: Path) -> None:
    torchrun = str(Path(sys.executable).parent / "torchrun")
    arguments = ["--worker", what, str(case), str(file)]
    command = [torchrun, "--standalone", "--nproc_per_node", str(ranks), __file__, *arguments]
    subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=True, timeout=280, stdout=subprocess.DEVNULL)


def make_run(case: tuple):
    """Three tasks: videos of 2 x 64 patches with text, recordings of 96 patches with text, and images of 64 patches with
    classes."""
    from imp_ds.config import RunConfig, TrainSettings
    from imp_ds.families.imp.settings import ModelSettings
    from imp_ds.modalities.audio.view import AudioView
    from imp_ds.modalities.text.view import TextView
    from imp_ds.modalities.views import Views
    from imp_ds.modalities.vision.view import VisionView
    from imp_ds.objectives import Classification, Contrastive
    from imp_ds.tasks import Source, Task

    _, width, experts, ep_size, _ = case
    source = Source(path="none", vision="v", audio="a", text="t", label="l")
    film, image = VisionView(frames=2, height=64, width=64), VisionView(height=64, width=64)
    waveform, text = AudioView(seconds=6.144), TextView(length=16)
    tasks = [
        Task(name="film_text", source=source, views=Views(vision=film, text=text), batch_size=16,
             objectives=[Contrastive(pairs=[("vision", "text")])]),
        Task(name="sound_text", source=source, views=Views(audio=waveform, text=text), batch_size=16,
             objectives=[Contrastive(pairs=[("audio", "text")])]),
        Task(name="image_class", source=source, views=Views(vision=image), batch_size=32,
             objectives=[Classification(modality="vision", num_classes=100)]),
    ]  # fmt: skip
    model = ModelSettings(
        size="tiny", hidden_size=width, intermediate_size=4 * width, num_hidden_layers=4, num_attention_heads=width // 32,
        num_experts=experts, moe_layers="every:2" if experts else None, group_examples=1, vision_patch=(1, 8, 8),
        vision_max=(4, 64, 64), audio_patch=(8, 8), audio_max=(128, 64), text_max=32, common_dim=width,
    )  # fmt: skip
    audio = dict(frame_length=2048, hop_length=1024, mel_bins=64)
    train = TrainSettings(steps=100, ep_size=ep_size)
    return RunConfig(name="plan", model=model, data=dict(vocab_size=1000, audio=audio), tasks=tasks, train=train)


def make_batch(run, task, config, rank: int, world: int):
    """A rank's share of a made-up batch of the task's shapes."""
    import torch

    from imp_ds.families.imp.costs.flops import patch_values
    from imp_ds.families.imp.costs.tokens import task_tokens
    from imp_ds.tasks import Batch

    draw, samples, inputs = torch.Generator().manual_seed(rank), task.batch_size // world, {}
    for modality, length in task_tokens(task, config, run.data).items():
        values = patch_values(task.views, config)[modality]
        if modality == "text":
            ids = torch.randint(1, 1000, (samples, length), generator=draw)
            inputs[modality] = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        elif modality == "vision":
            pixels = torch.randint(0, 255, (samples, length, values), dtype=torch.uint8, generator=draw)
            inputs[modality] = dict(pixel_values=pixels, pixel_positions=torch.rand(samples, length, 3, generator=draw))
        else:
            features = torch.randn(samples, length, values, generator=draw)
            inputs[modality] = dict(input_features=features, feature_positions=torch.rand(samples, length, 2, generator=draw))
    return Batch(task.name, inputs, {"label": torch.randint(0, 100, (samples,), generator=draw)})


def predict(case: tuple, profile: Path) -> dict:
    """The plan's figures for a case."""
    from imp_ds.planning.hardware_profile import HardwareProfile
    from imp_ds.planning.plan import plan

    ranks, _, _, _, stage = case
    found = plan(make_run(case), 1, ranks, profile=HardwareProfile.load(profile), stage=stage)
    return {
        "seconds": statistics.mean(time.seconds for time in found.times),
        "bytes": found.memory[stage].total,
        "communication": statistics.mean(sum(time.communication.values()) for time in found.times),
    }


def start(case: tuple, memory: "Memory | None" = None) -> tuple:
    """The engine of a case and a rank's batch of each task. What libraries hold after a tiny model has been
    trained does not count as memory of the case."""
    import torch

    from imp_ds.families.build import build_module
    from imp_ds.families.imp.pretraining import ImpForPreTraining
    from imp_ds.parallel.groups import rank
    from imp_ds.planning.measure.engine import Chain, engine_config
    from imp_ds.planning.measure.kernels import DTYPES
    from imp_ds.train.engine import ds_config
    from imp_ds.train.engine.engine import Engine, start_process_group

    ranks, _, _, _, stage = case
    device, run = start_process_group(120), make_run(case)
    config = run.model.to_config(1000, run.tasks)
    kind, precision = ("gpu", "bf16") if device.type == "cuda" else ("cpu", "float32")
    ds = ds_config.resolve(ds_config.load(ds_config.FOLDER / f"{kind}_zero{stage}.json"), run, ranks)
    tiny = Engine(Chain(2, 8), engine_config(stage, device, DTYPES[precision]), weight_decay=0.0, device=device)
    tiny.forward(torch.ones(1, 8, device=device, dtype=DTYPES[precision]))
    tiny.update(1e-4)
    batches = [make_batch(run, task, config, rank(), ranks).to(device) for task in run.tasks]
    if memory:
        memory.begin(device)
    engine = Engine(build_module(ImpForPreTraining, config, 0, run.train.ep_size), ds, weight_decay=1e-4, device=device)
    return engine, batches


def measure_time(case: tuple, out: Path) -> None:
    """Train a case; rank 0 writes the seconds of a step and those of its communication."""
    clock = Clock()
    from imp_ds.parallel import exchange
    from imp_ds.parallel.groups import barrier, is_main

    send = exchange._send
    # the exchange of tokens is a functional collective, which is not a function of torch.distributed
    exchange._send = clock.timed(lambda *arguments: exchange._wait(send(*arguments)))
    engine, batches = start(case)
    seconds, sent = {}, {}
    for turns, found in ((WARM, {}), (STEPS, seconds), (STEPS, sent)):
        clock.on = found is sent
        for batch in batches * turns:
            barrier()
            clock.seconds, begin = 0.0, time.perf_counter()
            engine.forward(batch)
            engine.update(1e-4)
            clock.wait()
            found.setdefault(batch.task, []).append(clock.seconds if clock.on else time.perf_counter() - begin)
    clock.on = False
    if is_main():
        means = [statistics.mean(statistics.median(times) for times in found.values()) for found in (seconds, sent)]
        out.write_text(json.dumps(dict(zip(("seconds", "communication"), means))))
    barrier()


def measure_memory(case: tuple, out: Path) -> None:
    """Train a case for three turns; rank 0 writes by how many bytes it grew."""
    from imp_ds.parallel.groups import barrier, is_main

    memory = Memory()
    engine, batches = start(case, memory)
    for batch in batches * 3:
        engine.forward(batch)
        engine.update(1e-4)
    if is_main():
        out.write_text(json.dumps({"bytes": memory.growth()}))
    barrier()


class Memory:
    """The most memory held at a time from `begin` on, above what was held then, in bytes."""

    def begin(self, device) -> None:
        """On a CPU the C library shall from now on hand back at once what is freed: what it would keep in store for later is
        not the run's need."""
        import torch

        self.cuda = torch.cuda if device.type == "cuda" else None
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
            self.before = self.cuda.memory_allocated()
            return
        libc = ctypes.CDLL(None)
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
            libc.mallopt(option, 1 << 16)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark begins anew
        self.before = self._status("VmRSS")

    def growth(self) -> int:
        return (self.cuda.max_memory_allocated() if self.cuda else self._status("VmHWM")) - self.before

    @staticmethod
    def _status(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024


class Clock:
    """Sums, while `on`, what collectives take once all ranks have come. Made before DeepSpeed is imported, which keeps
    functions of torch.distributed for itself."""

    def __init__(self):
        import torch
        import torch.distributed as dist

        self.on, self.seconds, self._barrier = False, 0.0, dist.barrier
        self.wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        for name in COLLECTIVES:
            if hasattr(dist, name):
                setattr(dist, name, self.timed(getattr(dist, name)))

    def timed(self, function):
        """`function`, a collective, with its time summed."""
        import torch.distributed as dist

        def call(*arguments, **options):
            if not self.on:
                return function(*arguments, **options)
            self._barrier()
            self.wait()
            start = time.perf_counter()
            work = function(*arguments, **options)
            if isinstance(work, dist.Work):
                work.wait()
            self.wait()
            self.seconds += time.perf_counter() - start
            return work

        return call


def compare(case: tuple, predicted: dict, measured: dict) -> list[str]:
    """One row of the table."""
    ranks, width, experts, ep_size, stage = case
    row = [str(ranks), str(width), f"{experts} experts, ep {ep_size}" if experts else "dense", str(stage)]
    for name, scale, digits in (("seconds", 1e3, 1), ("bytes", 2**-20, 0), ("communication", 1e3, 1)):
        if name == "communication" and ranks == 1:
            row += ["", "", ""]
            continue
        a, b = predicted[name], measured[name]
        row += [f"{scale * a:,.{digits}f}", f"{scale * b:,.{digits}f}", f"{100 * (a / b - 1):+.0f}%"]
    return row


def table(rows: list) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    names = ["ranks", "width", "feed-forward", "ZeRO"]
    for what in ("step, ms", "memory growth, MiB", "communication, ms"):
        names += [f"{what}: planned", "measured", "error"]
    shown = [compare(*row) for row in rows]
    errors = [int(cell[:-1]) for row in shown for cell in row if cell.endswith("%")]
    lines = [
        "# What `imp_ds plan` predicts against what runs measure",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, ranks of 1 thread on one machine; "
        f"Python {platform.python_version()}, {packages}.",
        f"Mean over three alternating tasks of the medians of {STEPS} steps; 4 layers, every second one with experts, if any.",
        f"Within 25%: {sum(abs(error) <= 25 for error in errors)} of {len(errors)} figures. "
        "`python benchmarks/plan_accuracy.py` makes this table.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + " ---: |" * len(names),
        *("| " + " | ".join(row) + " |" for row in shown),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
