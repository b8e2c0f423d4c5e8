"""A small run of three alternating tasks with made-up batches, and what tests of the engine read from it.

Shapes: B samples of the global batch, L tokens, P values of a patch.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups as deepspeed_groups
from safetensors.torch import save_file

from imp_ds.config import OptimizerSettings, RunConfig, TrainSettings
from imp_ds.families.build import build_module
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.families.trainable import freeze_others
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Contrastive
from imp_ds.parallel.groups import is_main, rank, world_size
from imp_ds.tasks import Batch, Source, Task
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import Engine

VOCABULARY = 50
MARKS = SimpleNamespace(mask_token_id=VOCABULARY - 1, eos_token_id=VOCABULARY - 2)  # what of a tokenizer a model has to know
ORDER = ("image_text", "speech_text", "image_class")
SIZES = {"image_text": 8, "speech_text": 4, "image_class": 8}


def make_run(*, ep_size: int = 1, clip: float = 0.1, ema: float | None = None, **model) -> RunConfig:
    """Three tasks that share the encoder and own something each. The clip is one that these gradients exceed."""
    source = Source(path="none", vision="v", audio="a", text="t", label="l")
    vision, audio, text = VisionView(height=16, width=16), AudioView(seconds=1.28), TextView(length=12)
    views = {
        "image_text": Views(vision=vision, text=text),
        "speech_text": Views(audio=audio, text=text),
        "image_class": Views(vision=vision),
    }
    objectives = {
        "image_text": [Contrastive(pairs=[("vision", "text")])],
        "speech_text": [Contrastive(pairs=[("audio", "text")], positives="equal")],
        "image_class": [Classification(modality="vision", num_classes=10)],
    }
    tasks = [Task(name=n, source=source, views=views[n], objectives=objectives[n], batch_size=SIZES[n]) for n in ORDER]
    shape = dict(
        size="tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_experts=4,
        moe_layers="every:2", vision_patch=(1, 4, 4), vision_max=(4, 16, 16), audio_patch=(4, 4), audio_max=(16, 64), text_max=32,
        common_dim=32, group_examples=1, router_z_loss=0.01,
    )  # fmt: skip
    return RunConfig(
        name="small",
        model=ModelSettings(**{**shape, **model}),
        data=dict(vocab_size=VOCABULARY, audio=dict(frame_length=2048, hop_length=2048, mel_bins=64)),
        tasks=tasks,
        train=TrainSettings(steps=100, ep_size=ep_size, ema=ema),
        optimizer=OptimizerSettings(clip=clip, weight_decay=1e-2),
    )


def make_config(run: RunConfig):
    return run.model.to_config(VOCABULARY, run.tasks, MARKS)


def make_batch(step: int) -> Batch:
    """The global batch of a step, the same on every rank."""
    draw = torch.Generator().manual_seed(step)
    task = ORDER[step % 3]
    size = SIZES[task]
    vision = dict(
        pixel_values=torch.randint(0, 255, (size, 16, 48), dtype=torch.uint8, generator=draw),
        pixel_positions=torch.rand(size, 16, 3, generator=draw),
    )
    audio = dict(
        input_features=torch.randn(size, 8, 16, generator=draw), feature_positions=torch.rand(size, 8, 2, generator=draw)
    )
    mask_BL = torch.ones(size, 12, dtype=torch.long)
    mask_BL[:, 7:] = 0
    mask_BL[0, 3:] = 0
    text = dict(input_ids=torch.randint(1, VOCABULARY, (size, 12), generator=draw), attention_mask=mask_BL)
    inputs = {
        "image_text": dict(vision=vision, text=text),
        "speech_text": dict(audio=audio, text=text),
        "image_class": dict(vision=vision),
    }
    return Batch(task, inputs[task], {"label": torch.randint(0, 10, (size,), generator=draw)})


def share(batch: Batch) -> Batch:
    """This rank's rows of a global batch."""
    return batch.map(lambda x: x.chunk(world_size())[rank()])


def make_engine(run: RunConfig, ds: dict | str, device: torch.device, *, seed: int = 0, prepare_model=None) -> Engine:
    """An engine under a DeepSpeed configuration, or under the shipped file of that name, resolved as `train` does it."""
    ds = ds_config.load(ds_config.FOLDER / ds) if isinstance(ds, str) else ds
    resolved = ds_config.resolve(ds, run, world_size())
    model = build_module(ImpForPreTraining, make_config(run), seed, run.train.ep_size)
    if prepare_model is not None:
        prepare_model(model)
    freeze_others(model, run.train.trainable)
    decays = dict(weight_decay=run.optimizer.weight_decay, ema=run.train.ema)
    return Engine(model, resolved, **decays, device=device, mixed=run.train.mixed)


def step_engine(engine: Engine, batch: Batch, learning_rate: float, micro_batches: int = 1) -> tuple[float, float]:
    """One optimizer step on this rank's rows of a global batch: (loss of the global batch, gradient norm)."""
    loss, _, _ = engine.forward(share(batch), micro_batches)
    norm, _ = engine.update(learning_rate)
    mean = loss.detach().clone()
    if world_size() > 1:
        dist.all_reduce(mean)
    return mean.item() / world_size(), float(norm)


def full_parameters(engine: Engine) -> dict[str, torch.Tensor]:
    """Every parameter as the forward uses it, gathered over partitions and over expert ranks."""
    found = {}
    with deepspeed.zero.GatheredParameters(list(engine.model.parameters()), enabled=engine.stage == 3):
        for name, parameter in engine.model.named_parameters():
            value = parameter.detach().clone()
            if hasattr(parameter, "group_name"):
                parts = [torch.empty_like(value) for _ in range(engine.ep_size)]
                dist.all_gather(parts, value, group=deepspeed_groups._get_expert_parallel_group(parameter.group_name))
                value = torch.cat(parts)
            found[name] = value
    return found


def write_outcome(engine: Engine, steps: list[tuple[float, float]], folder: str, name: str) -> None:
    """The losses and gradient norms in {name}.json, all weights in {name}.safetensors. All ranks call it."""
    weights = full_parameters(engine)
    if is_main():
        (Path(folder) / f"{name}.json").write_text(json.dumps(steps))
        save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder) / f"{name}.safetensors")


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all elements of all tensors, which must have the same names and shapes."""
    assert a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)
    return max((a[name] - b[name]).abs().max().item() for name in a)
