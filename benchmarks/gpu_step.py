"""A training step of the published models on one GPU: time and model FLOPs utilisation of each task, compiled and not.

    python benchmarks/gpu_step.py --recipes imp_moe_b imp_b --gpus 32 --out benchmarks/results/gpu_step.md
    python benchmarks/gpu_step.py --device cpu --recipes imp_moe_b_debug --gpus 1 --rounds 3

Each task has a made-up batch of the recipe's own shapes: a GPU's share where `--gpus` of them train together. A step is all of
a step of training, through DeepSpeed, the optimizer included; what the other GPUs would add is left out (their rows in
contrastive losses, communication). Compiled and plain steps take turns. MFU: FLOPs of matrix products alone
(`imp_ds/families/imp/costs/flops.py`) against the rate that a large product reaches in the same process. Where timm is installed,
a step of its ViT-B/16 on as many images of 256 tokens stands beside. On an H200 it should take a few minutes, most of them to
compile; with --device cpu it proves itself.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MODES = ("plain", "compiled")
WARM_UP = 2
STEPS = 3  # one after another, as in training: the host prepares one while the device is at the last
VOCABULARY = 32100


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--recipes", nargs="+", default=["imp_moe_b", "imp_b"])
    parser.add_argument("--tasks", nargs="+", help="of the recipes; default: all")
    parser.add_argument("--gpus", type=int, default=32, help="that would share a batch of the recipe")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again, as on smaller GPUs")
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    parser.add_argument("--kernels", type=Path, help="write to this file which kernels the steps spend their time in (cuda)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch and DeepSpeed look for one
    for name, value in dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0").items():
        os.environ.setdefault(name, value)
    import torch

    from imp_ds.train.engine.engine import start_process_group
    from imp_ds.train.matrix_peak import matrix_peak

    device = start_process_group(120)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    peak = matrix_peak(device, dtype, limit_s=1.0)
    lines = heading(options, device, dtype, peak)
    if options.kernels:
        options.kernels.write_text("")  # each recipe adds its own
    measured = {recipe: lambda recipe=recipe: recipe_steps(options, recipe, device) for recipe in options.recipes}
    if device.type == "cuda" and find_spec("timm"):
        measured["timm ViT-B/16"] = lambda: timm_steps(options, device)
    for name, measure in measured.items():
        lines += ["", f"## {name}", "", *table(*measure(), peak)]
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    torch.distributed.destroy_process_group()


def heading(options, device, dtype, peak: float) -> list[str]:
    import torch

    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    return [
        "# A training step on one GPU" + ("" if device.type == "cuda" else ": tried on a CPU, which says nothing of a GPU"),
        "",
        f"{datetime.date.today()}, {where}; Python {platform.python_version()}, {packages}; {str(dtype)[6:]}.",
        f"A large matrix product reaches {peak / 1e12:.2f} TFLOP/s. Medians of {options.rounds} rounds in which all take turns, "
        f"{STEPS} steps each;",
        f"a batch is the share of one of {options.gpus} GPUs"
        f"{', activations computed again' if options.checkpointing else ''}.",
        f"`python benchmarks/gpu_step.py {' '.join(sys.argv[1:])}` makes this file.",
    ]


def recipe_steps(options, recipe: str, device) -> tuple[dict[str, tuple], dict]:
    """By task (samples, FLOPs of a step, how often it comes), and the seconds of its steps by (task, mode)."""
    from imp_ds.families.build import build_module
    from imp_ds.families.imp.costs.flops import step_flops
    from imp_ds.families.imp.pretraining import ImpForPreTraining
    from imp_ds.recipes import get_recipe
    from imp_ds.train.engine import ds_config
    from imp_ds.train.engine.compilation import CompiledBlocks, uncompiled
    from imp_ds.train.engine.engine import Engine

    run = get_recipe(recipe)
    run.tasks = [task for task in run.tasks if not options.tasks or task.name in options.tasks]
    for task in run.tasks:
        task.batch_size = max(1, task.batch_size // options.gpus)
    config = run.model.to_config(VOCABULARY, run.tasks)
    ds = ds_config.resolve(ds_config.load(ds_config.FOLDER / f"{'gpu' if device.type == 'cuda' else 'cpu'}_zero1.json"), run, 1)
    model = build_module(ImpForPreTraining, config, seed=0, ep_size=1)
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = Engine(model, ds, weight_decay=run.optimizer.weight_decay, device=device)
    batches = {task.name: made_up(run, task, config).to(device) for task in run.tasks}
    blocks = CompiledBlocks(engine.model, shapes=3 * len(run.tasks))
    blocks.warm(engine, batches.values(), {name: 1 for name in batches}, len(batches))

    def step(task: str, mode: str) -> None:
        if mode == "compiled":
            one_step(engine, batches[task])
        else:
            with uncompiled():
                one_step(engine, batches[task])

    seconds = take_turns(options, device, list(batches), step)
    if options.kernels:
        from kernels import kernel_table

        with options.kernels.open("a") as file:
            for task in batches:
                file.write(kernel_table(f"{recipe}: {task}, compiled", lambda: step(task, "compiled"), repeats=1))
    flops = {task.name: step_flops(task, config, run.data, 1) for task in run.tasks}
    return {task.name: (task.batch_size, flops[task.name], 1 / task.interval) for task in run.tasks}, seconds


def one_step(engine, batch) -> None:
    engine.forward(batch)
    engine.update(1e-5)


def made_up(run, task, config):
    """A batch of the task's shapes; every sample with a label of its own."""
    import torch

    from imp_ds.families.imp.costs.flops import patch_values
    from imp_ds.families.imp.costs.tokens import task_tokens
    from imp_ds.tasks import Batch

    samples, inputs, generator = task.batch_size, {}, torch.Generator().manual_seed(0)
    for modality, length in task_tokens(task, config, run.data).items():
        shape = samples, length, patch_values(task.views, config)[modality]
        if modality == "text":
            ids = torch.randint(1, VOCABULARY, shape[:2], generator=generator)
            inputs[modality] = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        elif modality == "vision":
            pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            inputs[modality] = dict(pixel_values=pixels, pixel_positions=torch.rand(samples, length, 3, generator=generator))
        else:
            values = torch.randn(shape, generator=generator)
            inputs[modality] = dict(input_features=values, feature_positions=torch.rand(samples, length, 2, generator=generator))
    classes = min((o.num_classes for o in task.objectives if o.kind == "classification"), default=samples)
    return Batch(task.name, inputs, {"label": torch.arange(samples) % classes}, torch.arange(samples))


def take_turns(options, device, names: list[str], step) -> dict[tuple[str, str], list[float]]:
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken = {(name, mode): [] for name in names for mode in MODES}
    for _ in range(options.rounds + WARM_UP):
        for name, mode in taken:
            wait()
            start = time.perf_counter()
            for _ in range(STEPS):
                step(name, mode)
            wait()
            taken[name, mode].append((time.perf_counter() - start) / STEPS)
    return {key: seconds[WARM_UP:] for key, seconds in taken.items()}


def timm_steps(options, device) -> tuple[dict[str, tuple], dict]:
    """The dense encoder of IMP-B as timm has it, on 256 tokens of 16 x 16 pixels, with 1000 classes."""
    import timm
    import torch

    shape = dict(img_size=256, class_token=False, global_pool="avg", num_classes=1000)
    plain = timm.create_model("vit_base_patch16_224", **shape).to(device, torch.bfloat16)
    calls = {"plain": plain, "compiled": torch.compile(plain, dynamic=False)}
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-5, fused=True)
    samples = 8192 // options.gpus
    images, labels = torch.randn(samples, 3, 256, 256, device=device, dtype=torch.bfloat16), torch.arange(samples) % 1000
    labels = labels.to(device)

    def step(_, mode: str) -> None:
        loss = torch.nn.functional.cross_entropy(calls[mode](images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    width, depth, tokens = 768, 12, 256
    # as costs/flops.py counts: 2 for a multiply-and-add, forward and twice that backward; patches need no gradient
    layers = 6 * depth * samples * tokens * (12 * width**2 + 2 * tokens * width)
    flops = layers + 4 * samples * tokens * 768 * width + 6 * samples * width * 1000
    return {"image_class": (samples, flops, 1.0)}, take_turns(options, device, ["image_class"], step)


def table(tasks: dict[str, tuple], seconds: dict, peak: float) -> list[str]:
    lines = ["| task | samples | TFLOP | plain ms | MFU | compiled ms | MFU | samples/s |", "| --- " + "| ---: " * 7 + "|"]
    total = dict.fromkeys(("flops", *MODES), 0.0)
    for name, (samples, flops, share) in tasks.items():
        plain, compiled = (statistics.median(seconds[name, mode]) for mode in MODES)
        total["flops"] += share * flops
        total["plain"], total["compiled"] = total["plain"] + share * plain, total["compiled"] + share * compiled
        lines.append(
            f"| {name} | {samples} | {flops / 1e12:.3g} | {plain * 1e3:.1f} | {flops / plain / peak:.1%} | {compiled * 1e3:.1f} "
            f"| {flops / compiled / peak:.1%} | {samples / compiled:,.0f} |"
        )
    shares = [f"{total['flops'] / total[mode] / peak:.1%}" for mode in MODES]
    return [*lines, f"| all, as often as they come | | | | {shares[0]} | | {shares[1]} | |"]


if __name__ == "__main__":
    main()
