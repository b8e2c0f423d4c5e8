"""What routing by condition costs: a training step and an inference of each router against the dense encoder, in the same run.

    python benchmarks/conditional_speed.py --out benchmarks/results/conditional_speed.md

One encoder (width 384, 4 layers; in every second one, as published, all four linear layers have 8 experts, of which 2 are chosen)
with each of the five gates; token and context gates drop-free, since a token needs its query. All are trained and asked in turns
in one process, on the same batch of images and captions, so that whatever else the machine does falls on all of them; compared
is the best time that a step had the CPU, on one thread. A training step is forward, backward and the update by DeepSpeed
(ZeRO 2, which the engine runs with on a CPU); what of it is forward and backward stands beside it. Inference is of images:
with experts, and merged (`export --merge`) where that is possible. About 10 minutes.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch and DeepSpeed look for one
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GATES = ("modality", "task", "attribute", "token", "context")
SIZE = dict(
    hidden_size=384, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=6, vision_patch=(1, 8, 8),
    vision_max=(4, 64, 64), text_max=32, common_dim=384, qk_norm=True,
)  # fmt: skip
EXPERTS = dict(num_experts=8, experts_per_token=2, moe_layers=[0, 2], conditional_linears=["qkv", "out", "up", "down"])
WORDS, VOCABULARY = 16, 1000
WARM_UP = 3
TRAINING, INFERENCE = 1.4, 1.1  # the bounds for gates that are constant for a segment


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[8, 48], help="pairs of an image of 64 patches and a caption of 16 words"
    )
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each router")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    return parser.parse_args()


def main() -> None:
    options = parse()
    import torch

    from imp_ds.train.engine.engine import start_process_group

    torch.set_num_threads(options.threads)
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=29533).items():
        os.environ.setdefault(name, str(value))
    device = start_process_group(120)
    engines = {gate: engine_of(gate, options, device) for gate in ("dense", *GATES)}
    models = {gate: model_of(run_of(gate, options)) for gate in engines}
    training = time_training(models, engines, options)
    encoders = inference_models(models)
    text = page(encoders, training, time_inference(encoders, options), options)
    print(text)
    if options.out:
        options.out.write_text(text)
    torch.distributed.destroy_process_group()


def run_of(gate: str, options):
    """The RunConfig of one task, images against captions, with a gate, or "dense"."""
    from imp_ds.config import OptimizerSettings, RunConfig, TrainSettings
    from imp_ds.families.imp.settings import ModelSettings
    from imp_ds.modalities.text.view import TextView
    from imp_ds.modalities.views import Views
    from imp_ds.modalities.vision.view import VisionView
    from imp_ds.objectives import Contrastive
    from imp_ds.tasks import Source, Task

    settings = {} if gate == "dense" else EXPERTS | dict(gate=gate)
    if gate in ("token", "context"):
        settings |= dict(router="top_k", drop_tokens=False)
    task = Task(
        name="image_text", source=Source(path="none", vision="v", text="t"), batch_size=max(options.batches),
        views=Views(vision=VisionView(height=64, width=64), text=TextView(length=WORDS)),
        objectives=[Contrastive(pairs=[("vision", "text")])],
    )  # fmt: skip
    return RunConfig(
        name=gate, model=ModelSettings(**SIZE, **settings), tasks=[task], train=TrainSettings(steps=100),
        optimizer=OptimizerSettings(clip=1.0),
    )  # fmt: skip


def model_of(run):
    from imp_ds.families.build import build_module
    from imp_ds.families.imp.pretraining import ImpForPreTraining

    return build_module(ImpForPreTraining, run.model.to_config(VOCABULARY, run.tasks), seed=0, ep_size=1).train()


def engine_of(gate: str, options, device):
    from imp_ds.train.engine import ds_config
    from imp_ds.train.engine.engine import Engine

    run = run_of(gate, options)
    ds = ds_config.resolve(ds_config.load(ds_config.FOLDER / "cpu_zero2.json"), run, 1)
    return Engine(model_of(run), ds, weight_decay=run.optimizer.weight_decay, device=device)


def make_batch(samples: int):
    import torch

    from imp_ds.modalities.positions import grid_positions
    from imp_ds.tasks import Batch

    draw = torch.Generator().manual_seed(0)
    vision = dict(
        pixel_values=torch.randint(0, 256, (samples, 64, 192), dtype=torch.uint8, generator=draw),
        pixel_positions=torch.from_numpy(grid_positions(1, 8, 8)).expand(samples, -1, -1),
    )
    words_BL = torch.randint(1, VOCABULARY, (samples, WORDS), generator=draw)
    return Batch("image_text", {"vision": vision, "text": dict(input_ids=words_BL)}, {"label": torch.arange(samples)})


def seconds(function) -> float:
    """The CPU's, of this process: what others take does not count."""
    start = time.process_time()
    function()
    return time.process_time() - start


def best_in_turns(calls: dict, rounds: int) -> dict:
    """The best seconds of each call, all of which take turns."""
    found = {name: [] for name in calls}
    for turn in range(rounds + WARM_UP):
        for name, call in calls.items():
            taken = seconds(call)
            if turn >= WARM_UP:
                found[name].append(taken)
    return {name: min(times) for name, times in found.items()}


def time_training(models: dict, engines: dict, options) -> dict[tuple, float]:
    """By (gate, "step" or "gradient", pairs): a whole step, and forward and backward alone, of a model without an engine."""
    found = {}
    for pairs in options.batches:
        batch, calls = make_batch(pairs), {}
        for gate, engine in engines.items():

            def step(engine=engine, batch=batch) -> None:
                engine.forward(batch)
                engine.update(1e-4)

            def gradient(model=models[gate], batch=batch) -> None:
                model.zero_grad()
                model(batch)[0].backward()

            calls |= {(gate, "step", pairs): step, (gate, "gradient", pairs): gradient}
        found |= best_in_turns(calls, options.rounds)
    return found


def inference_models(models: dict) -> dict:
    """By (gate, "experts" or "merged") an encoder in evaluation mode."""
    from imp_ds.families.imp.merging import merge

    found = {(gate, "experts"): model.eval().imp for gate, model in models.items()}
    return found | {(gate, "merged"): merge(models[gate]).imp for gate in models if models[gate].config.has_constant_gate}


def time_inference(encoders: dict, options) -> dict[tuple, float]:
    """By (gate, "experts" or "merged", images): encoding that many images at once, whose condition is known before."""
    import torch

    calls = {}
    for (gate, form), encoder in encoders.items():
        condition = encoder.condition("vision", "image_text")
        for images in (1, *options.batches):
            inputs = make_batch(images).inputs["vision"]

            def encode(encoder=encoder, inputs=inputs, condition=condition, images=images) -> None:
                for _ in range(max(options.batches) // images):  # one image alone is too short to be timed
                    encoder.encode("vision", inputs, condition=condition)

            calls[gate, form, images] = encode
    with torch.no_grad():
        found = best_in_turns(calls, options.rounds)
    return {key: taken / (max(options.batches) // key[2]) for key, taken in found.items()}


def page(encoders: dict, training: dict, inference: dict, options) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    batches = " ".join(map(str, options.batches))
    lines = [
        "# The cost of routing by condition",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {options.threads} thread, float32; "
        f"Python {platform.python_version()}, {packages}.",
        f"Width {SIZE['hidden_size']}, {SIZE['num_hidden_layers']} layers; all four linear layers of layers 0 and 2 have "
        f"{EXPERTS['num_experts']} experts, of which {EXPERTS['experts_per_token']} are chosen.",
        f"Token and context gates are drop-free. Best CPU time of {options.rounds} rounds in which all take turns; in brackets "
        "against dense, in the same run.",
        f"`python benchmarks/conditional_speed.py --batches {batches} --rounds {options.rounds} "
        "--out benchmarks/results/conditional_speed.md` makes this file.",
        "",
        *training_table(training, options),
        *inference_table(encoders, inference, options),
        "",
        *conclusions(training, inference, options),
    ]
    return "\n".join(lines) + "\n"


def training_table(times: dict, options) -> list[str]:
    heads = [f"{part}, {pairs * (64 + WORDS):,} tokens" for pairs in options.batches for part in ("a step", "forward, backward")]
    lines = ["## Training, ms", "", f"| router | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for gate in ("dense", *GATES):
        keys = [(part, pairs) for pairs in options.batches for part in ("step", "gradient")]
        lines.append(f"| {gate} | {' | '.join(against(times, (gate, *key), ('dense', *key)) for key in keys)} |")
    return [*lines, ""]


def inference_table(encoders: dict, times: dict, options) -> list[str]:
    sizes = (1, *options.batches)
    heads = ["parameters, M", *(f"{images} image{'s' * (images > 1)}" for images in sizes)]
    lines = ["## Inference, ms", "", f"| router | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for (gate, form), encoder in encoders.items():
        name = f"{gate}, merged" if form == "merged" else gate
        cells = [f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f}"]
        cells += [against(times, (gate, form, images), ("dense", "experts", images)) for images in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def against(times: dict, key: tuple, dense: tuple) -> str:
    return f"{1e3 * times[key]:,.1f} ({times[key] / times[dense]:.2f})"


def conclusions(training: dict, inference: dict, options) -> list[str]:
    """The bounds are held at the largest batch: the update passes over all experts, whatever the number of tokens."""
    constant, pairs, sizes = GATES[:3], max(options.batches), (1, *options.batches)
    steps = [training[gate, "step", pairs] / training["dense", "step", pairs] for gate in constant]
    merged = [inference[gate, "merged", n] / inference["dense", "experts", n] for gate in constant for n in sizes]
    return [
        conclusion(f"a training step of {pairs * (64 + WORDS):,} tokens within {TRAINING} of dense", max(steps), TRAINING),
        conclusion(f"merged inference within {INFERENCE} of dense", max(merged), INFERENCE),
    ]


def conclusion(what: str, worst: float, bound: float) -> str:
    return f"- {'met' if worst <= bound else 'NOT met'}: modality, task and attribute gates: {what}: at most {worst:.2f}"


if __name__ == "__main__":
    main()
