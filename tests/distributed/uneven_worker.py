"""One rank of tests/distributed/test_uneven_steps.py: steps that leave ranks, experts or modalities without work.

Shapes: B samples of the global batch, E experts, D width.
"""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from helpers.ranks import leave
from helpers.small_run import VOCABULARY, full_parameters, make_engine, make_run, step_engine
from imp_ds.config import RunConfig
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.moe.layer import MoELayer
from imp_ds.objectives import Classification, Contrastive
from imp_ds.parallel.groups import is_main
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch, Source, Task
from imp_ds.train.engine.engine import Engine, start_process_group

STEPS = 8
SIZES = {"film_text": 4, "word": 8, "speech_text": 2, "image": 2}  # on two ranks: 2, 4, 1 and 1


def uneven_run(ep_size: int, **model) -> RunConfig:
    """Four tasks, no two of one shape, one of text alone; groups of one example, dropout and routing noise."""
    run = make_run(ep_size=ep_size, hidden_dropout=0.1, router_noise=1.0, **model)
    source = Source(path="none", vision="v", audio="a", text="t", label="l")
    vision, audio, text = VisionView(height=16, width=16), AudioView(seconds=1.28), TextView(length=12)
    film = VisionView(frames=4, height=16, width=16)
    entries = {
        "film_text": (Views(vision=film, text=text), Contrastive(pairs=[("vision", "text")])),
        "word": (Views(text=text), Classification(modality="text", num_classes=10)),
        "speech_text": (Views(audio=audio, text=text), Contrastive(pairs=[("audio", "text")])),
        "image": (Views(vision=vision), Classification(modality="vision", num_classes=10)),
    }
    run.tasks = [
        Task(name=name, source=source, views=views, objectives=[objective], batch_size=SIZES[name])
        for name, (views, objective) in entries.items()
    ]
    return run


def uneven_batch(step: int) -> Batch:
    """The global batch of a step. In the second `word` step, all texts of the second half of the batch are padding alone."""
    task = list(SIZES)[step % 4]
    size, draw = SIZES[task], torch.Generator().manual_seed(step)
    frames = 4 if task == "film_text" else 1
    vision = dict(
        pixel_values=torch.randint(0, 255, (size, 16 * frames, 48), dtype=torch.uint8, generator=draw),
        pixel_positions=torch.rand(size, 16 * frames, 3, generator=draw),
    )
    audio = dict(
        input_features=torch.randn(size, 8, 16, generator=draw), feature_positions=torch.rand(size, 8, 2, generator=draw)
    )
    mask_BL = torch.ones(size, 12, dtype=torch.long)
    mask_BL[:, 7:] = 0
    if step == 5:
        mask_BL[size // 2 :] = 0
    text = dict(input_ids=torch.randint(1, VOCABULARY, (size, 12), generator=draw), attention_mask=mask_BL)
    inputs = {
        "film_text": dict(vision=vision, text=text), "word": dict(text=text), "speech_text": dict(audio=audio, text=text),
        "image": dict(vision=vision),
    }  # fmt: skip
    label_B = torch.randint(0, 10, (size,), generator=draw)
    return Batch(task, inputs[task], {"label": label_B}, sample_keys(0, step, 0, size))


def train(folder: str, ep_size: int, cases: dict[str, dict]) -> None:
    """For each case (changes of the model, and "forced": all tokens go to the experts 0 and 1) the losses, and the rows of each
    expert in all steps of this rank, in {name}_{rank}.json; the weights in {name}.safetensors."""
    device = start_process_group(60)
    for name, case in cases.items():
        case = dict(case)
        forced = case.pop("forced", False)
        ds = f"cpu_zero2{'_ep2' if ep_size == 2 else ''}.json"
        engine = make_engine(uneven_run(ep_size, **case), ds, device)
        rows_E = _count_rows(engine)
        losses = []
        for step in range(STEPS):
            if forced:
                _force(engine)
            losses.append(step_engine(engine, uneven_batch(step), 1e-3)[0])
        weights = full_parameters(engine)
        found = {"losses": losses, "rows": rows_E.tolist()}
        (Path(folder) / f"{name}_{dist.get_rank()}.json").write_text(json.dumps(found))
        if is_main():
            save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder) / f"{name}.safetensors")
    leave()


def _force(engine: Engine) -> None:
    """Opposite weights for the experts 0 and 1 and none for 2 and 3: whatever the token, one of the first two is its best. The
    weights are large, so that no noise can change that."""
    for module in engine.model.modules():
        if isinstance(module, MoELayer):
            weight_ED = module.router.weight.detach()
            weight_ED.zero_()
            weight_ED[0].normal_(std=1e4, generator=torch.Generator().manual_seed(9))
            weight_ED[1] = -weight_ED[0]


def _count_rows(engine: Engine) -> torch.Tensor:
    """Counts, from now on, the rows of each expert that hold one of this rank's tokens: int64 [4]."""
    rows_E = torch.zeros(4, dtype=torch.int64)

    def count(module, args, routing):
        rows = routing.count_E if routing.count_E is not None else (routing.weight_N.view(4, -1) > 0).sum(1)
        rows_E.add_(rows)

    for module in engine.model.modules():
        if isinstance(module, MoELayer):
            module.router.register_forward_hook(count)
    return rows_E
