"""Steps, examples and tokens per second by task for the recipe `digits`: its mixture of experts against a dense encoder.

    python benchmarks/digits_speed.py [--data data/digits] [--ranks 2] [--rounds 20] [--out benchmarks/results/digits_speed.md]

Both are trained in one launch, in turns, on the same batches, on DeepSpeed (ZeRO 2). The dense encoder has the layers,
widths and so the active parameters of the sparse one (capacity factor 1: one expert for each token on average). With several
ranks the experts are spread over all of them. About 3 minutes.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/digits", help="the digits corpus")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each task and encoder")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        torchrun = str(Path(sys.executable).parent / "torchrun")
        command = [torchrun, "--standalone", "--nproc_per_node", str(options.ranks), *sys.argv]
        raise SystemExit(subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}).returncode)
    table = measure(options)
    if table:
        print(table)
        if options.out:
            options.out.write_text(table)


def engines(run, ranks: int, device) -> tuple[dict, object]:
    """Name -> (engine, batches by task, tokens by task) for both encoders, and the processor."""
    from imp_ds.data.loading.collation import Collator
    from imp_ds.data.loading.step_batches import StepBatches
    from imp_ds.families.build import build_module
    from imp_ds.families.imp.pretraining import ImpForPreTraining
    from imp_ds.families.imp.processor import build_processor
    from imp_ds.parallel.groups import rank
    from imp_ds.train.engine import ds_config
    from imp_ds.train.engine.engine import Engine
    from imp_ds.train.recording.step_facts import count_tokens
    from imp_ds.train.schedule import build_schedule
    from imp_ds.train.start import open_readers

    readers = open_readers(run)
    processor = build_processor(run, readers)
    schedule = build_schedule("rotation", run.tasks, 0)
    steps = StepBatches(run.tasks, schedule, readers, Collator(processor), seed=0, rank=rank(), world=ranks)
    batches = {batch.task: batch.to(device) for batch in (steps[step] for step in range(len(run.tasks)))}
    tokens = {name: count_tokens(batch) * ranks for name, batch in batches.items()}
    made = {}
    for name, experts in (("dense", 0), ("experts", run.model.num_experts)):
        own = run.override([f"model.num_experts={experts}", f"train.ep_size={ranks if experts else 1}", "model.qk_norm=true"])
        config = own.model.to_config(len(processor.tokenizer), own.tasks)
        path = ds_config.default_path(own.train.ep_size, device.type)
        ds = ds_config.resolve(ds_config.load(path), own, ranks)
        model = build_module(ImpForPreTraining, config, 0, own.train.ep_size)
        made[name] = Engine(model, ds, weight_decay=own.optimizer.weight_decay, device=device)
    return made, batches, tokens


def measure(options) -> str | None:
    """The table, on rank 0."""
    import torch.distributed as dist

    from imp_ds.parallel.groups import barrier, is_main
    from imp_ds.recipes import get_recipe
    from imp_ds.train.engine.engine import start_process_group

    run = get_recipe("digits").override([f"data.root={options.data}"])
    for entry in run.tasks:
        entry.interval = 1  # one sweep then holds a batch of each
    device = start_process_group(120)
    made, batches, tokens = engines(run, options.ranks, device)
    seconds = {(name, task): [] for name in made for task in batches}
    for turn in range(options.rounds + 3):
        for task, batch in batches.items():
            for name, engine in made.items():
                barrier()
                start = time.perf_counter()
                loss, _, _ = engine.forward(batch)
                engine.update(1e-4)
                barrier()
                if turn >= 3:  # the first turns allocate
                    seconds[name, task].append(time.perf_counter() - start)
    text = table(run, seconds, tokens, options) if is_main() else None
    dist.destroy_process_group()
    return text


def table(run, seconds: dict, tokens: dict, options) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    lines = [
        "# Speed of the recipe `digits`: mixture of experts against dense, same active parameters",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {options.ranks} ranks of 1 thread, float32, "
        f"ZeRO 2; Python {platform.python_version()}, {packages}.",
        f"Median of {options.rounds} steps of each; forward, backward and update, without loading. "
        "`python benchmarks/digits_speed.py` makes this file.",
        "",
        "| task | tokens of a step | encoder | steps/s | examples/s | tokens/s | time against dense |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for task in run.tasks:
        for name in ("dense", "experts"):
            median = statistics.median(seconds[name, task.name])
            ratio = median / statistics.median(seconds["dense", task.name])
            lines.append(
                f"| {task.name} | {tokens[task.name]:,} | {name} | {1 / median:.1f} | {task.batch_size / median:,.0f} | "
                f"{tokens[task.name] / median:,.0f} | {ratio:.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
