"""Three tasks over a few made-up pictures, of which the last has no validation split."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Contrastive
from imp_ds.tasks import Source, Task

SHADES = ["black", "grey", "white"]
ROWS = {"train": 12, "validation": 8}


def write_corpus(root: Path) -> None:
    """Pictures of three shades with captions; those of "more" are for training alone."""
    draw = np.random.default_rng(0)
    for folder, splits in (("pictures", ROWS), ("more", {"train": 12})):
        for split, rows in splits.items():
            (home := root / folder / split).mkdir(parents=True)
            lines = []
            for row in range(rows):
                pixels = draw.integers(0, 60, (16, 16, 3)) + 90 * (row % 3)
                Image.fromarray(pixels.astype(np.uint8)).save(home / f"{row}.png")
                lines.append({"file_name": f"{row}.png", "text": f"{SHADES[row % 3]} number {row}", "label": row % 3})
            (home / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def pictures() -> RunConfig:
    """With a rate at which the loss on validation soon rises again."""
    source = Source(path="pictures", vision="file_name", text="text", label="label", label_names=SHADES)
    vision, text = VisionView(height=16, width=16, drop_rate=0.25), TextView(length=8)
    shade = Classification(modality="vision", num_classes=3)
    more = source.model_copy(update={"path": "more"})
    views = Views(vision=vision)
    return RunConfig(
        name="pictures",
        model=ModelSettings(
            size="tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, hidden_dropout=0.1,
            vision_patch=(1, 8, 8), vision_max=(1, 16, 16), text_max=8, common_dim=16,
        ),
        data=DataSettings(workers=0, vocab_size=40),
        tasks=[
            Task(name="caption", source=source, views=Views(vision=vision, text=text),
                 objectives=[Contrastive(pairs=[("vision", "text")])], batch_size=4),
            Task(name="shade", source=source, views=views, objectives=[shade], batch_size=4),
            Task(name="more_shade", source=more, views=views, objectives=[shade], batch_size=4),
        ],
        train=TrainSettings(steps=10, log_every=1, eval_every=1, save_every=4, keep_checkpoints=1),
        optimizer=OptimizerSettings(peak_rate=2e-2, decay_steps=10),
    )  # fmt: skip
