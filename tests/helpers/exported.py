"""A small exported model of vision, audio and text, and a corpus of pictures, videos and recordings for it."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from helpers.media_files import write_video
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp import ImpFeatureExtractor, ImpImageProcessor, ImpProcessor, ImpVideoProcessor
from imp_ds.objectives import Contrastive
from imp_ds.recipes.digits import audio
from imp_ds.tasks import Source, Task

NAMES, TEMPLATES = ["red", "green", "blue"], ["a {} square", "something {}", "{}"]
RATE, ROWS = 16000, {"train": 9, "test": 7}
TEXT = TextView(length=8)
SEEN = {
    "image": ("vision", Views(vision=VisionView(height=16, width=16), text=TEXT)),
    "video": ("vision", Views(vision=VisionView(frames=4, height=16, width=16), text=TEXT)),
    "audio": ("audio", Views(audio=AudioView(seconds=0.32), text=TEXT)),
}
SUFFIX = {"image": "png", "video": "mp4", "audio": "wav"}


def write_media(root: Path) -> None:
    """Of each kind rows in three classes, noise over a colour or a tone, with two captions; the last recording is longer than the
    view."""
    for kind, suffix in SUFFIX.items():
        for split, rows in ROWS.items():
            folder = root / kind / split
            folder.mkdir(parents=True)
            for row in range(rows):
                _write(folder / f"{row}.{suffix}", kind, row, seed=row + 100 * (split == "test"), longer=row == rows - 1)
            named = [(row, NAMES[row % 3]) for row in range(rows)]
            lines = (
                {"file_name": f"{row}.{suffix}", "label": row % 3, "captions": [f"a {name} square", f"{name} {row}"]}
                for row, name in named
            )
            (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write(path: Path, kind: str, row: int, seed: int, longer: bool) -> None:
    draw = np.random.default_rng(seed)
    if kind == "audio":
        seconds = 0.8 if longer else 0.32
        wave = 0.3 * np.sin(2 * np.pi * 400 * (1 + row % 3) * np.arange(round(RATE * seconds)) / RATE)
        soundfile.write(path, wave + 0.2 * draw.normal(size=len(wave)), RATE)
        return
    noise = draw.integers(0, 100, (5, 16, 16, 3))
    noise[..., row % 3] += 120
    if kind == "image":
        Image.fromarray(noise[0].astype(np.uint8)).save(path)
    else:
        write_video(path, noise.astype(np.uint8))


def make_run(root: Path) -> RunConfig:
    """Untrained; a task and an evaluation for each kind of media."""
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, common_dim=8, num_experts=4)
    shape |= dict(vision_patch=(1, 8, 8), vision_max=(4, 16, 16), audio_patch=(8, 16), audio_max=(32, 64), group_examples=1)
    tasks, evaluations = [], []
    for kind, (modality, views) in SEEN.items():
        source = Source(path=kind, text="captions", label="label", label_names=NAMES, **{modality: "file_name"})
        objectives = [Contrastive(pairs=[(modality, "text")])]
        tasks.append(Task(name=f"{kind}_text", source=source, views=views, objectives=objectives, batch_size=4))
        evaluations.append(Evaluation(name=kind, modality=modality, source=source, views=views, templates=TEMPLATES))
    data = DataSettings(root=str(root), cache_dir=str(root / "cache"), audio=audio())
    return RunConfig(
        name="colours", model=ModelSettings(size="tiny", moe_layers="last:1", **shape), data=data, tasks=tasks,
        evaluations=evaluations, train=TrainSettings(steps=1),
    )  # fmt: skip


def export(root: Path, folder: Path) -> RunConfig:
    """Write an exported model of `make_run` to `folder`."""
    run = make_run(root)
    captions = [template.format(name) for name in NAMES for template in TEMPLATES] * 10
    tokenizer = train_tokenizer(captions, 64, seed=0)
    torch.manual_seed(0)
    model = ImpForPreTraining(run.model.to_config(len(tokenizer), run.tasks, tokenizer))
    with torch.no_grad():  # larger weights: what is untrained still tells its inputs apart
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    patch = model.config.vision_patch
    log_mel = {"frame_length": 400, "hop_length": 160, "mel_bins": 64}  # those of `audio`
    processor = ImpProcessor(
        ImpImageProcessor(size=16, patch=patch), ImpVideoProcessor(frames=4, size=16, patch=patch),
        ImpFeatureExtractor(log_mel=log_mel, seconds=0.32, patch=model.config.audio_patch), tokenizer,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    run.save(folder / "run_config.json")
    return run
