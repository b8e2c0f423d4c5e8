"""A corpus of six pictures, four videos and three recordings of which everything is known, and a run of two tasks over each
kind."""

import json

import numpy as np
import soundfile
from PIL import Image

from helpers.media_files import write_video
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Contrastive, MaskedLanguage
from imp_ds.recipes.digits import audio
from imp_ds.tasks import Source, Task

NAMES = ["dog", "cat", "number"]
IMAGES = Source(path="images", vision="file_name", text="captions", label="label", label_names=NAMES)
VIDEOS = Source(path="films", vision="file_name", audio="file_name", label="label")
AUDIOS = Source(path="sounds", audio="file_name", label="label")
IMAGE, VIDEO, AUDIO = VisionView(height=16, width=16), VisionView(frames=4, height=16, width=16), AudioView(seconds=0.32)
RATE = 16000


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3], between 0 and 127: never the grey of what is dropped."""
    return np.random.default_rng(seed).integers(0, 128, (height, width, 3), dtype=np.uint8)


def tone(hertz: float, seconds: float = 0.32) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


def write_rows(root, kind: str, *rows: dict):
    (root / kind / "train").mkdir(parents=True, exist_ok=True)
    (root / kind / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / kind / "train"


def write_images(root) -> None:
    """32 x 24, 64 x 48, the first again, 40 x 30 cut in the middle, one that is not there, 16 x 16."""
    folder = write_rows(
        root, "images",
        dict(file_name="a.png", label=0, captions=["a red dog", "a cat"]), dict(file_name="b.png", label=1, captions="собака"),
        dict(file_name="c.png", label=0, captions="a cat"), dict(file_name="d.png", label=1, captions="犬の写真"),
        dict(file_name="e.png", label=1, captions="not there"), dict(file_name="f.jpg", label=2, captions="123"),
    )  # fmt: skip
    for name, height, width in (("a.png", 24, 32), ("b.png", 48, 64), ("d.png", 30, 40), ("f.jpg", 16, 16)):
        Image.fromarray(picture(height, width)).save(folder / name)
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:1000])


def write_videos(root) -> None:
    """Two of 5 frames and 0.2 s of audio, one of 10 frames without, and what is no video."""
    folder = write_rows(root, "films", *(dict(file_name=f"{n}.mp4", label=0) for n in range(4)))
    for n in (0, 1):
        write_video(folder / f"{n}.mp4", np.full((5, 32, 32, 3), 40 * n, np.uint8), tone(400, 0.2)[None])
    write_video(folder / "2.mp4", np.full((10, 32, 32, 3), 80, np.uint8))
    (folder / "3.mp4").write_bytes(b"no video at all")


def write_recordings(root) -> None:
    """Tones of 500, 2,000 and 6,000 Hz, 0.32 s each."""
    hertz = (500, 2000, 6000)
    folder = write_rows(root, "sounds", *(dict(file_name=f"{h}.wav", label=n) for n, h in enumerate(hertz)))
    for h in hertz:
        soundfile.write(folder / f"{h}.wav", tone(h), RATE)


def tasks() -> list[Task]:
    text = TextView(length=8)
    return [
        Task(name="image_text", source=IMAGES, views=Views(vision=IMAGE, text=text), batch_size=2,
             objectives=[Contrastive(pairs=[("vision", "text")])]),
        Task(name="image_class", source=IMAGES, views=Views(vision=IMAGE), batch_size=2,
             additional_views=[Views(vision=IMAGE.model_copy(update={"drop_rate": 0.5}))],
             objectives=[Classification(modality="vision", num_classes=2)]),
        Task(name="film_class", source=VIDEOS, views=Views(vision=VIDEO), batch_size=2,
             objectives=[Classification(modality="vision", num_classes=2)]),
        Task(name="film_sound", source=VIDEOS, views=Views(vision=VIDEO, audio=AUDIO), batch_size=2,
             objectives=[Contrastive(pairs=[("vision", "audio")])]),
        Task(name="sound_class", source=AUDIOS, views=Views(audio=AUDIO), batch_size=4,
             objectives=[Classification(modality="audio", num_classes=3)]),
        Task(name="words", source=Source(path="images", text="captions"), views=Views(text=text), batch_size=4,
             objectives=[MaskedLanguage(rate=0.5)]),
    ]  # fmt: skip


def make_run(root, *names: str, **data) -> RunConfig:
    """The tasks of these names; the first has captions, from which the tokenizer of a run is made."""
    return RunConfig(
        name="made",
        model=ModelSettings(
            size="tiny", vision_patch=(4, 4, 4), vision_max=(16, 64, 64), audio_patch=(8, 16), audio_max=(128, 64), text_max=32,
        ),
        data=DataSettings(root=str(root), cache_dir=str(root / "cache"), vocab_size=60, audio=audio(), **data),
        tasks=[task for task in tasks() if task.name in names],
        train=TrainSettings(steps=10),
    )  # fmt: skip
