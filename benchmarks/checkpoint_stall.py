"""What training waits for a checkpoint, against the time that the checkpoint takes to be on the disk and published.

    python benchmarks/checkpoint_stall.py [--saves 3] [--folder DIR] [--out benchmarks/results/checkpoint_stall.md]

An encoder of some 100 M parameters with Adam's moments at ZeRO 0, 1 and 2 on one rank and on two. Training steps go on while
a checkpoint is written; beside it stands what DeepSpeed's own save_checkpoint, which training waits for, takes for the same
engine. Needs some 4 GB of memory for each rank, and 5 GB in --folder (the system's temporary folder by default). 20 minutes on
two cores that others used at the same time.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZE = dict(size="B", hidden_size=768, num_hidden_layers=12, vision_patch=(1, 16, 16), vision_max=(4, 64, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=3, help="checkpoints of each engine")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "RANK" in os.environ:
        measure(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = [launch(ranks, stage, options.saves, Path(folder)) for ranks in (1, 2) for stage in (0, 1, 2)]
    text = table(found, options.saves)
    print(text)
    if options.out:
        options.out.write_text(text)


def launch(ranks: int, stage: int, saves: int, folder: Path) -> dict:
    """Measure one engine in processes of its own."""
    torchrun = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*torchrun, __file__, "--saves", str(saves), "--stage", str(stage), "--folder", str(folder)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    return json.loads((folder / "found.json").read_text())


def make_engine(stage: int, device):
    """The engine, and its batch: two pictures for all ranks, so that steps are short."""
    import torch

    from imp_ds.config import RunConfig
    from imp_ds.families.build import build_module
    from imp_ds.families.imp.pretraining import ImpForPreTraining
    from imp_ds.families.imp.settings import ModelSettings
    from imp_ds.modalities.views import Views
    from imp_ds.modalities.vision.view import VisionView
    from imp_ds.objectives import Classification
    from imp_ds.parallel.groups import world_size
    from imp_ds.tasks import Batch, Source, Task
    from imp_ds.train.engine import ds_config
    from imp_ds.train.engine.engine import Engine

    task = Task(
        name="pictures", source=Source(path="none", vision="v", label="l"), views=Views(vision=VisionView(height=64, width=64)),
        objectives=[Classification(modality="vision", num_classes=10)], batch_size=2,
    )  # fmt: skip
    run = RunConfig(name="stall", model=ModelSettings(**SIZE), tasks=[task], train=dict(steps=1000))
    config = run.model.to_config(run.data.vocab_size, run.tasks)
    resolved = ds_config.resolve(ds_config.load(ds_config.FOLDER / f"cpu_zero{stage}.json"), run, world_size())
    engine = Engine(build_module(ImpForPreTraining, config, 0, 1), resolved, weight_decay=0.01, device=device)
    rows = 2 // world_size()
    vision = dict(
        pixel_values=torch.randint(0, 255, (rows, 16, 768), dtype=torch.uint8), pixel_positions=torch.rand(rows, 16, 3)
    )
    return engine, Batch("pictures", dict(vision=vision), {"label": torch.randint(0, 10, (rows,))})


def measure(options) -> None:
    """Write found.json, on rank 0: medians over the saves."""
    import torch.distributed as dist

    from imp_ds.parallel.groups import barrier, is_main, world_size
    from imp_ds.train.checkpoint import Writer
    from imp_ds.train.engine.engine import start_process_group

    engine, batch = make_engine(options.stage, start_process_group(300))

    def step() -> float:
        start = time.perf_counter()
        engine.forward(batch)
        engine.update(1e-4)
        barrier()
        return time.perf_counter() - start

    quiet = [step() for _ in range(4)][1:]
    folder = options.folder / f"zero{options.stage}"
    writer = Writer(engine, folder, keep=1)
    written, busy, theirs = [], [], []
    for save in range(options.saves):
        barrier()
        writer.save(save, {"step": save})
        barrier()
        ended = None
        while ended is None:
            busy.append(step())
            ended = agree(writer)
        written.append(ended)
        writer.wait()
        quiet.append(step())
        barrier()
        start = time.perf_counter()
        engine.deepspeed.save_checkpoint(str(folder / "deepspeed"), tag="one")
        barrier()
        theirs.append(time.perf_counter() - start)
        barrier()
        if is_main():
            shutil.rmtree(folder / "deepspeed")
    if is_main():
        assert all(w.problem is None for w in written)
        found = dict(
            ranks=world_size(), stage=options.stage, parameters=sum(p.numel() for p in engine.model.parameters()),
            size=written[0].size, waited=statistics.median(w.waited_s for w in written),
            share=statistics.median(w.waited_s / w.seconds for w in written), most=max(w.waited_s / w.seconds for w in written),
            seconds=statistics.median(w.seconds for w in written), quiet=statistics.median(quiet), busy=statistics.median(busy),
            theirs=statistics.median(theirs),
        )  # fmt: skip
        (options.folder / "found.json").write_text(json.dumps(found))
        shutil.rmtree(folder)
    dist.barrier()
    dist.destroy_process_group()


def agree(writer):
    """How the save ended as rank 0 knows it, on all ranks, so that all stop stepping together; None until it has."""
    import torch.distributed as dist

    reported = [writer.poll()]
    dist.broadcast_object_list(reported, src=0)
    return reported[0]


def table(found: list[dict], saves: int) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "safetensors"))
    lines = [
        "# What training waits for a checkpoint",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, ranks of 1 thread, float32, one disk shared by "
        f"the ranks; Python {platform.python_version()}, {packages}. Load of the machine in the last 15 minutes: "
        f"{os.getloadavg()[2]:.1f}.",
        f"An encoder of {found[0]['parameters'] / 1e6:.0f} M parameters; weights and two moments are "
        f"{12 * found[0]['parameters'] / 1e9:.2f} GB. Medians of {saves} checkpoints. "
        "`python benchmarks/checkpoint_stall.py` makes this file.",
        "",
        "Written: until all ranks' files are on the disk, hashed and published. Waited: what training stood still for. "
        "DeepSpeed: its own save_checkpoint of the same engine (no hashes, no waiting for the disk), for which training waits "
        "all along. Steps share the cores with the writing.",
        "",
        "| ranks | ZeRO | GB of a rank | written, s | waited, s | share | largest share | DeepSpeed, s | step, s | "
        "step meanwhile, s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for f in found:
        lines.append(
            f"| {f['ranks']} | {f['stage']} | {f['size'] / 1e9:.2f} | {f['seconds']:.2f} | {f['waited']:.3f} | "
            f"{f['share']:.1%} | {f['most']:.1%} | {f['theirs']:.2f} | {f['quiet']:.2f} | {f['busy']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
