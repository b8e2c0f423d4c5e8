"""A corpus of noisy squares in three colours, and what probes a small model on it."""

import json
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.evaluation import Evaluator, build_evaluators
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp import ImpImageProcessor
from imp_ds.models.imp.modeling_imp import ImpModel
from imp_ds.objectives import Classification
from imp_ds.tasks import Source, Task

TRAIN_ROWS, TEST_ROWS = 22, 13
VIEWS = Views(vision=VisionView(height=8, width=8))
SOURCE = Source(path="squares", vision="file_name", label="label")


def square(number: int) -> np.ndarray:
    """Noise that is a little brighter in the channel of its class, number % 3."""
    noise = np.random.default_rng(number).integers(0, 150, (8, 8, 3))
    noise[..., number % 3] += 30
    return noise.astype(np.uint8)


def write_squares(root) -> None:
    """Splits train and validation; the numbers of the second go on after the first's."""
    first = 0
    for split, rows in (("train", TRAIN_ROWS), ("validation", TEST_ROWS)):
        folder = root / "squares" / split
        folder.mkdir(parents=True)
        lines = []
        for number in range(first, first + rows):
            Image.fromarray(square(number)).save(folder / f"{number}.png")
            lines.append(json.dumps({"file_name": f"{number}.png", "label": number % 3}))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        first += rows


def probe_run(root, **options) -> RunConfig:
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, common_dim=8, num_experts=4)
    shape |= dict(vision_patch=(1, 4, 4), vision_max=(1, 8, 8), moe_layers="last:1", group_examples=1)
    objectives = [Classification(modality="vision", num_classes=3)]
    return RunConfig(
        name="squares", model=ModelSettings(size="tiny", **shape), data=DataSettings(root=str(root)),
        tasks=[Task(name="square", source=SOURCE, views=VIEWS, objectives=objectives, batch_size=4)],
        evaluations=[
            Evaluation(name="colour", evaluator="probe", options=options, modality="vision", source=SOURCE, views=VIEWS)
        ],
        train=TrainSettings(steps=1),
    )  # fmt: skip


def probe_model() -> ImpModel:
    """Untrained: its features still tell colours apart, not always."""
    run = probe_run("nowhere")
    torch.manual_seed(0)
    return ImpModel(run.model.to_config(8, run.tasks))


def probe_evaluator(root, **options) -> Evaluator:
    """Of two draws of 1 and 3 samples of each class, and of all."""
    options = {"per_class": [1, 3, "all"], "draws": 2, "neighbours": [3], **options}
    processor = SimpleNamespace(image_processor=ImpImageProcessor(size=8, patch=(1, 4, 4)), tokenizer=None)
    run = probe_run(root, **options)
    (evaluator,) = build_evaluators(run, processor, "validation", batch_size=3, heads_of=())
    return evaluator
