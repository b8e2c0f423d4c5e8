"""Is a GPU fed? Training runs on photographs from tar shards, prepared by the loader's workers, against runs that need no data.

    python benchmarks/fed_step.py --data ../shared/data/real --workers 4 8 14 --out benchmarks/results/fed_step.md
    python benchmarks/fed_step.py --device cpu --model tiny --batch 16 --steps 30 --log-every 10 --workers 1 2

A run for each number of workers: `imp_ds.train.trainer.train` as a user starts it, one task, the last log intervals of its
metrics.jsonl. "fed" has every batch decoded, cropped, mirrored and cut into patches by the workers; "unfed" is the same run on
one batch that stays on the device. The photographs are the real ones enlarged to 500 x 375 (corpora.py). On a GPU about a minute
for each run, most of it to make the model and compile it.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

CORPUS = "images, 500 x 375"
WHAT = ("step_seconds", "examples_per_s", "data_wait_share")  # of metrics.jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "real", help="the real corpus")
    parser.add_argument("--model", default="B", help="size of the encoder, with 16 experts in its last 6 layers (B)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 8, 14])
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    if not (options.data / "images").is_dir():
        parser.error(f"--data: no folder {options.data / 'images'}; it wants the real corpus, with images/, videos/ and audio/")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch and DeepSpeed look for one
    for name, value in dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0").items():
        os.environ.setdefault(name, value)
    from corpora import corpora

    with tempfile.TemporaryDirectory() as folder:
        corpus = next(corpus for corpus in corpora(options.data, Path(folder)) if corpus.name == CORPUS)
        # DeepSpeed keeps what it knows of its process group: each run has a process of its own
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as runs:
            found = {}
            for workers in [0, *options.workers]:
                run = run_of(corpus, Path(folder), workers, options)
                found[workers] = runs.submit(measured, run, Path(folder)).result()
                print(workers, "workers:", found[workers], flush=True)
    text = "\n".join([*heading(options), *table(found)]) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


def run_of(corpus, folder: Path, workers: int, options):
    from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
    from imp_ds.families.imp.settings import ModelSettings

    task = corpus.task.model_copy(update={"batch_size": options.batch})
    layers = {"num_experts": 16, "moe_layers": "last:6"} if options.model == "B" else {"num_experts": 4, "moe_layers": "every:2"}
    return RunConfig(
        name="fed_step",
        model=ModelSettings(size=options.model, **layers, vision_patch=corpus.patch, vision_max=(16, 256, 256)),
        data=DataSettings(root=str(folder), workers=workers, cache_mb=0, window=512, vocab_size=256),
        tasks=[task],
        train=TrainSettings(
            steps=options.steps, log_every=options.log_every, eval_every=0, save_every=0, compile=options.device == "cuda",
        ),
        optimizer=OptimizerSettings(peak_rate=1e-4, warmup_rate=1e-6, warmup_steps=10, final_rate=1e-5),
    )  # fmt: skip


def measured(run, folder: Path) -> dict[str, float]:
    """Seconds of a step, images a second and share of waiting: medians of the later half of the log intervals, in which the
    workers have long begun. Without workers: unfed."""
    from imp_ds.train import trainer

    output = folder / f"run_{run.data.workers}"
    if run.data.workers == 0:
        trainer.RotatingLoader = repeating(trainer.RotatingLoader)
    trainer.train(run, output)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    return {what: statistics.median(line[what] for line in lines[len(lines) // 2 :]) for what in WHAT}


def repeating(loader: type) -> type:
    """A loader that gives its first batch again and again, from where the model is."""
    import torch

    class Repeating(loader):
        def __next__(self):
            if self.step == 0:
                batch = super().__next__()
                self.first = batch.to("cuda" if torch.cuda.is_available() else "cpu")
                return self.first
            if self.step >= self.stop_step:
                raise StopIteration
            self.step, self.wait_seconds = self.step + 1, 0.0
            return self.first

    return Repeating


def heading(options) -> list[str]:
    import torch

    where = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU, which says nothing of one"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    return [
        "# A model fed with photographs",
        "",
        f"{datetime.date.today()}, {where}, {os.cpu_count()} CPU cores; Python {platform.python_version()}, {packages}.",
        f"Size {options.model}, {options.batch} photographs of 500 x 375 a step, decoded, cropped to 256 x 256, mirrored.",
        f"`python benchmarks/fed_step.py {' '.join(sys.argv[1:])}` makes this file.",
        "",
        "| batches | step, ms | photographs/s | of unfed | waited |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]


def table(found: dict[int, dict[str, float]]) -> list[str]:
    lines, unfed = [], found[0]["examples_per_s"]
    for workers, values in found.items():
        name = f"from {workers} worker{'s' * (workers > 1)}" if workers else "unfed: one, again and again"
        seconds, rate, waited = (values[what] for what in WHAT)
        lines.append(f"| {name} | {seconds * 1e3:.1f} | {rate:,.0f} | {rate / unfed:.2f} | {waited:.1%} |")
    return lines


if __name__ == "__main__":
    main()
