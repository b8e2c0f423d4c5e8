"""A training step of a language model, with experts and dense, beside transformers' own with the same weights in plain PyTorch.

    python benchmarks/language_step.py [--base mixtral] [--steps 5] [--folder DIR] [--out benchmarks/results/language_step.md]

A Mixtral of some 90 M parameters, and a Llama of the same sizes, with a vocabulary of 32,000, float32, AdamW, 1,024 tokens in a
step, one process of one thread. Ours is the engine at ZeRO 0, with our experts and the loss in chunks. Each in a process of its
own; needs 4 GB of memory, 400 MB in --folder, and five minutes.
"""

import argparse
import ctypes
import datetime
import gc
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
SAMPLES, LENGTH, VOCABULARY, THREADS = 4, 256, 32000, 1
MODES = ("imp_ds", "transformers")
BASES = ("mixtral", "llama")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps that count, after a first one")
    parser.add_argument("--base", choices=BASES, action="append", help="repeatable; default: both")
    parser.add_argument("--folder", type=Path, help="where the model is written")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        measure(options)
        return
    found, parameters = {}, {}
    for base in options.base or BASES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            parameters[base] = write_model(base, Path(folder))
            found |= {(base, mode): launch(mode, options.steps, Path(folder)) for mode in MODES}
    text = table(found, parameters, options.steps)
    print(text)
    if options.out:
        options.out.write_text(text)


def write_model(base: str, folder: Path) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    experts = dict(num_local_experts=4, num_experts_per_tok=2) if base == "mixtral" else {}
    config = AutoConfig.for_model(
        base, vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, **experts,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "model")
    return sum(parameter.numel() for parameter in model.parameters())


def launch(mode: str, steps: int, folder: Path) -> dict:
    command = [sys.executable, __file__, "--mode", mode, "--steps", str(steps), "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    return json.loads((folder / f"{mode}.json").read_text())


def measure(options) -> None:
    import torch

    torch.set_num_threads(THREADS)
    step = {"imp_ds": our_step, "transformers": their_step}[options.mode](options.folder)
    ids = [torch.randint(0, VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(n)) for n in range(2)]
    losses, busy = [step(ids[0])], []
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    for number in range(options.steps):
        used = time.process_time()
        losses.append(step(ids[number % 2]))
        busy.append(time.process_time() - used)
    found = dict(losses=losses, busy=busy, held=held, peak=memory("VmHWM"))
    (options.folder / f"{options.mode}.json").write_text(json.dumps(found))
    os._exit(0)


def our_step(folder: Path):
    import torch

    from helpers.upcycled_run import config_of, make_run
    from imp_ds.tasks import Batch
    from imp_ds.train.engine import ds_config
    from imp_ds.train.engine.engine import start_process_group
    from imp_ds.train.start import start_engine

    device = start_process_group(300)
    run = make_run(folder / "model", num_experts=0)
    run.optimizer.weight_decay = 0.0  # ours does not act on embeddings and norms
    ds = ds_config.load(ds_config.default_path(1, "cpu"))
    ds["zero_optimization"]["stage"] = 0
    engine, _ = start_engine(run, config_of(run), ds_config.resolve(ds, run, 1), device, None, None, folder / "run")

    def step(ids) -> float:
        batch = Batch("talk", {"messages": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}, {"labels": ids})
        loss = engine.forward(batch).loss
        engine.update(1e-4)
        return float(loss)

    return step


def their_step(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    from imp_ds.config import OptimizerSettings

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
    settings = OptimizerSettings()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, settings.betas, settings.eps, weight_decay=0.0)

    def step(ids) -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def memory(name: str) -> float:
    """A line of the process's status, in MB: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def table(found: dict[tuple[str, str], dict], parameters: dict[str, int], steps: int) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    load = os.getloadavg()[2]
    lines = [
        "# A training step of a language model, with experts and dense",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, one process of one thread, float32; Python",
        f"{platform.python_version()}, {versions}. Load of the machine in the last 15 minutes: {load:.1f}.",
        f"A Mixtral with 4 experts, 2 of a token, and a Llama of the same sizes, vocabulary {VOCABULARY:,}; {SAMPLES}",
        f"samples of {LENGTH} tokens; medians of {steps} steps after a first one.",
        "`python benchmarks/language_step.py` makes this file.",
        "",
        "imp_ds: the engine (DeepSpeed, ZeRO 0, AdamW) with our experts and the loss in chunks. transformers: its own model,",
        "loss and experts in plain PyTorch with AdamW; the same weights and batches. Seconds are those of the processor, which",
        "others used at the same time. Held: MB of the process between steps, with moments; peak: in a step.",
        "",
        "| | parameters | | tokens/s | step, s | held | peak | above what is held | loss of the first and the last step |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for (base, mode), row in found.items():
        seconds = statistics.median(row["busy"])
        losses = f"{row['losses'][0]:.4f}, {row['losses'][-1]:.4f}"
        above = row["peak"] - row["held"]
        speed = f"{SAMPLES * LENGTH / seconds:.0f} | {seconds:.2f}"
        size = f"{parameters[base] / 1e6:.0f} M"
        lines.append(f"| {base} | {size} | {mode} | {speed} | {row['held']:.0f} | {row['peak']:.0f} | {above:.0f} | {losses} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
