"""A small Uni-MoE model with random weights, whose answers depend on what it sees and hears, and conversations to ask it."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from helpers.media_files import write_video
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.data.corpus import open_corpus
from imp_ds.evaluation_record import Evaluation
from imp_ds.families import family_of
from imp_ds.families.uni_moe.settings import ConnectorSettings, UniMoeSettings
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.views import Views
from imp_ds.models.uni_moe import UniMoeProcessor
from imp_ds.objectives import NextToken
from imp_ds.tasks import Source, Task

LANGUAGE_MODEL = dict(
    model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, initializer_range=0.3,
)  # fmt: skip
VISION = dict(
    model_type="clip_vision_model", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    image_size=16, patch_size=8, initializer_range=0.3,
)  # fmt: skip
AUDIO = dict(
    model_type="whisper", d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=80,
    max_source_positions=50, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
)  # fmt: skip
IMP = dict(  # with experts of its own
    model_type="imp", hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_experts=2,
    moe_layers="last:1", vision_patch=(1, 8, 8), vision_max=(8, 16, 16), audio_patch=(16, 16), audio_max=(96, 64),
)  # fmt: skip
DAMAGED = "damaged.png"
VIEWS = Views(messages=MessagesView(length=96))
SOURCE = Source(path="talk", messages="messages", splits={"train": "rows.jsonl", "validation": "rows.jsonl"})


def image_file(folder, name: str, number: int) -> str:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return name


def audio_file(folder, name: str, number: int) -> str:
    """A chord; those of odd numbers are longer than a chunk of audio."""
    times = np.arange(8000 + 12000 * (number % 2)) / 16000
    soundfile.write(folder / name, 0.5 * np.sin(2 * np.pi * 300 * (number + 1) * times) * np.cos(20 * times), 16000)
    return name


def turns(*contents: str) -> list[dict]:
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


def rows(folder, references: list[str]) -> list[dict]:
    """Nine rows: four about an image, one of which a follow-up; three about an image and a recording; one without media; and one
    whose image is damaged."""
    image = lambda n: image_file(folder, f"{n}.png", n)  # noqa: E731
    audio = lambda n: audio_file(folder, f"{n}.wav", n)  # noqa: E731
    found = [dict(messages=turns("<image>\nwhich digit is this?", references[n]), images=[image(n)]) for n in range(3)]
    found.append(dict(messages=turns("what is one and two?", references[3])))
    (folder / DAMAGED).write_bytes(b"no picture at all")
    found.append(dict(messages=turns("<image>\nwhat is broken?", "x"), images=[DAMAGED]))
    for n in (4, 5, 6):
        asked = turns("<image><audio>\nis it the same?" + " really?" * (n - 4), references[n])
        found.append(dict(messages=asked, images=[image(n)], audios=[audio(n)]))
    found.append(dict(messages=turns("<image>\nwhich digit is this?", "two", "is it even?", references[7]), images=[image(7)]))
    return found


def write_rows(root, references: list[str]) -> list[dict]:
    folder = root / "talk"
    folder.mkdir(exist_ok=True)
    written = rows(folder, references)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    return written


def make_run(root, *, num_experts: int = 0, towers: tuple[dict, dict] = (VISION, AUDIO), **options) -> RunConfig:
    """towers: of images and videos, and of audio."""
    root = Path(root)
    connector = ConnectorSettings(pool=1)
    evaluation = Evaluation(name="talk", modality="messages", source=SOURCE, views=VIEWS, evaluator="answers", options=options)
    return RunConfig(
        name="talking",
        model=UniMoeSettings(
            language_model=LANGUAGE_MODEL, image_tower=towers[0], video_tower=towers[0], audio_tower=towers[1],
            image_connector=connector, audio_connector=ConnectorSettings(pool=10) if towers[1] is AUDIO else connector,
            num_experts=num_experts,
        ),
        data=DataSettings(root=str(root), cache_dir=str(root / "cache"), vocab_size=70),
        tasks=[Task(name="talk", source=SOURCE, views=VIEWS, objectives=[NextToken()], batch_size=2)],
        evaluations=[evaluation],
        train=TrainSettings(steps=1),
    )  # fmt: skip


def small_model(run: RunConfig, *, ep_size: int = 1):
    """(model, processor); connectors are made strong, so that another image gives another answer."""
    family = family_of(run)
    processor = family.processor(run, open_corpus(run))
    model = family.build(family.config(run, processor), seed=1, ep_size=ep_size).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "connectors" in name:
                parameter.mul_(20)
    return model, processor


def export_talking(root) -> tuple[Path, UniMoeForTraining, UniMoeProcessor]:
    """(folder of an exported model, the model, its processor); beside the folder a.png, a.mp4, and a.wav of two chunks."""
    write_rows(root, ["seven"] * 8)
    run = make_run(root)
    model, processor = small_model(run)
    folder = root / "model"
    for part in (model, processor):
        part.save_pretrained(folder)
    run.save(folder)
    image_file(root, "a.png", 1)
    audio_file(root, "a.wav", 1)
    write_video(root / "a.mp4", np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    return folder, model, processor
