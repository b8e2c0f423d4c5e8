"""The recipe `digits`: images, videos, speech and text of the ten digits, on two CPU cores.

    imp_ds corpus digits data/digits
    deepspeed --num_gpus 2 --module imp_ds train digits --set train.ep_size=2

Hardware: two CPU cores, 0.88 GiB for each rank. Time: 6 minutes. Zero-shot top 1 on the test split, 2026-11-27: images 98.3 %,
videos 88.5 % (of 40), speech 98.1 % (`bash scripts/quickstart.sh`).
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.data.digits.captions import class_names
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities import Modality
from imp_ds.modalities.audio.view import AudioSettings, AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Contrastive
from imp_ds.tasks import Source, Task

IMAGE = VisionView(frames=1, height=32, width=32)
# Two ways to see a video with fewer tokens than the whole (72): a quarter of the tokens dropped (54), or half of the frames (36).
VIDEO = VisionView(frames=8, height=48, width=48)
VIDEO_DROPPED = VisionView(frames=8, height=48, width=48, drop_rate=0.25)
VIDEO_HALVED = VisionView(frames=4, height=48, width=48)
AUDIO = AudioView(seconds=1.28)
CAPTION = TextView(length=10)

IMAGES = Source(path="images", vision="file_name", text="captions", label="label")
VIDEOS = Source(path="films", vision="file_name", text="captions", label="label")
VIDEOS_WITH_AUDIO = Source(path="films", vision="file_name", audio="file_name", text="captions", label="label")
SPEECH = Source(path="speech", audio="file_name", text="captions", label="label")


def matching(*pairs: tuple[str, str]) -> Contrastive:
    """NCE over the pairs; the corpus repeats its captions, so whatever shares a label matches."""
    return Contrastive(pairs=list(pairs), positives="equal")


def naming(modality: Modality, folder: str) -> Classification:
    """A head for the classes of a folder of the corpus."""
    names = class_names(folder)
    return Classification(modality=modality, num_classes=len(names), names=names)


def tasks() -> list[Task]:
    """Four tasks that match modalities with each other, two that name the digit. Videos are the hardest: they come most often."""
    text = ("vision", "text"), ("audio", "text")
    return [
        Task(
            name="image_text",
            source=IMAGES,
            views=Views(vision=IMAGE, text=CAPTION),
            objectives=[matching(text[0])],
            batch_size=32,
            interval=2,
        ),
        Task(
            name="film_text",
            source=VIDEOS,
            views=Views(vision=VIDEO_DROPPED, text=CAPTION),
            objectives=[matching(text[0]), naming("vision", "films")],
            batch_size=32,
        ),
        Task(
            name="film_speech_text",
            source=VIDEOS_WITH_AUDIO,
            views=Views(vision=VIDEO_HALVED, audio=AUDIO, text=CAPTION),
            objectives=[matching(("vision", "text"), ("vision", "audio"), ("audio", "text"))],
            batch_size=32,
            interval=2,
        ),
        Task(
            name="speech_text",
            source=SPEECH,
            views=Views(audio=AUDIO, text=CAPTION),
            objectives=[matching(text[1])],
            batch_size=32,
            interval=2,
        ),
        Task(
            name="image_digit",
            source=IMAGES,
            views=Views(vision=IMAGE),
            objectives=[naming("vision", "images")],
            batch_size=32,
            interval=2,
        ),
        Task(
            name="speech_digit",
            source=SPEECH,
            views=Views(audio=AUDIO),
            objectives=[naming("audio", "speech")],
            batch_size=32,
            interval=2,
        ),
    ]


def evaluations() -> list[Evaluation]:
    """Zero-shot classification by prompts, and retrieval by captions, for each modality against text."""
    return [
        Evaluation(name="image", modality="vision", source=IMAGES, views=Views(vision=IMAGE, text=CAPTION), classes="images"),
        Evaluation(name="video", modality="vision", source=VIDEOS, views=Views(vision=VIDEO, text=CAPTION), classes="films"),
        Evaluation(name="audio", modality="audio", source=SPEECH, views=Views(audio=AUDIO, text=CAPTION), classes="speech"),
    ]


def audio() -> AudioSettings:
    """25 ms frames every 10 ms: 128 frames in 1.28 seconds."""
    return AudioSettings(frame_length=400, hop_length=160, mel_bins=64)


def digits() -> RunConfig:
    """One sparse encoder of 4 experts on six tasks; see the head of this file for the command and what it reaches."""
    return RunConfig(
        name="digits",
        model=ModelSettings(
            size="tiny",
            vision_patch=(4, 8, 8),
            vision_max=(16, 64, 64),
            audio_patch=(16, 16),
            audio_max=(128, 64),
            text_max=32,
            common_dim=128,
            num_experts=4,
            moe_layers="every:2",
            capacity_factor=1.01,  # a caption's 10 tokens: 3 slots of each expert, where 2.5 would be rounded to 2
            group_examples=1,
            router_z_loss=1e-3,
        ),
        data=DataSettings(root="data/digits", vocab_size=512, audio=audio()),
        tasks=tasks(),
        evaluations=evaluations(),
        train=TrainSettings(steps=2600, log_every=50, eval_every=800, save_every=800),
        optimizer=OptimizerSettings(peak_rate=1.2e-3, warmup_rate=1e-6, warmup_steps=100, final_rate=1e-5),
    )


def digits_debug() -> RunConfig:
    """`digits` in two layers, with tiny batches and short: seconds on one core.

    imp_ds train digits_debug
    """
    run = digits()
    run.name = "digits_debug"
    run.model.hidden_size, run.model.intermediate_size, run.model.num_hidden_layers = 64, 128, 2
    for task in run.tasks:
        task.batch_size, task.interval = 8, 1
    run.train = TrainSettings(steps=12, log_every=1, eval_every=0, save_every=0)
    run.optimizer.warmup_steps = 4
    return run
