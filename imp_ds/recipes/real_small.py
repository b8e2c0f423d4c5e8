"""The recipe `real_small`: photographs, videos of people and spoken digits of a small real corpus, in three storage formats.

    deepspeed --num_gpus 2 --module imp_ds train real_small --set data.root=DIR --set train.ep_size=2

`DIR` holds images/ (Parquet files with embedded JPEGs), audio/ (tar shards) and videos/ (a folder of mp4 files with
metadata.jsonl), each with classes.json and the splits train and validation. Six tasks train together: each modality matched with
its captions, and each by its class.

Hardware: two CPU cores. Time: 14 to 20 minutes. Zero-shot top 1 on the validation split, 2026-11-27: photographs 53.8 % (10
classes), videos 75.0 % (4 actions, 8 videos), speech 96.5 % (10 digits); benchmarks/results/real_small.md.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Augmentation, Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification
from imp_ds.recipes.digits import audio, matching
from imp_ds.tasks import Source, Task

# most tokens are dropped in training: it costs as much less, and little data last longer. Small patches of which many are dropped
# serve better than large ones of which few are: videos at 64 x 64 instead of 32 x 32, recordings in patches of 40 instead of 80
# ms
IMAGE = VisionView(frames=1, height=32, width=32, drop_rate=0.5)
VIDEO = VisionView(frames=8, height=64, width=64, sampling="clip", stride=4, drop_rate=0.75)
AUDIO = AudioView(seconds=0.96, drop_rate=0.625)
CAPTION = TextView(length=8)

IMAGES = Source(
    path="images", format="parquet", vision="image", text="caption", label="label", label_names="classes.json",
    captions_ignore=["sides", "colours"],
)  # fmt: skip
VIDEOS = Source(
    path="videos", vision="file_name", text="caption", label="label", label_names="classes.json",
    captions_ignore=["sides", "colours"],
)  # fmt: skip
SPEECH = Source(
    path="audio", format="webdataset", audio="wav", text="json.caption", label="json.label", label_names="classes.json"
)  # fmt: skip

# photographs are seen some thirty times: too few for the wide crops and the colours of long trainings
PHOTO = Augmentation(crop_area=(0.7, 1.0), crop_aspect=(0.8, 1.25), flip=True)
CLIP = Augmentation(crop_area=(0.6, 1.0), crop_aspect=(0.8, 1.25), flip=True, colour=0.4)
VOICE = Augmentation(spec_masks=1, spec_time=0.15, spec_frequency=0.2, speed=0.15)


def tasks() -> list[Task]:
    """Photographs are the hardest, and come most often."""
    return [
        Task(
            name="image_text", source=IMAGES, views=Views(vision=IMAGE, text=CAPTION), augment=PHOTO,
            objectives=[matching(("vision", "text"))], batch_size=64, interval=2,
        ),
        Task(
            name="image_class", source=IMAGES, views=Views(vision=IMAGE), augment=PHOTO,
            objectives=[Classification(modality="vision", num_classes=10, label_smoothing=0.1)], batch_size=64,
        ),
        Task(
            name="film_text", source=VIDEOS, views=Views(vision=VIDEO, text=CAPTION), augment=CLIP,
            objectives=[matching(("vision", "text"))], batch_size=16, interval=4,
        ),
        Task(
            name="film_class", source=VIDEOS, views=Views(vision=VIDEO), augment=CLIP,
            objectives=[Classification(modality="vision", num_classes=4, label_smoothing=0.1)], batch_size=16, interval=4,
        ),
        Task(
            name="speech_text", source=SPEECH, views=Views(audio=AUDIO, text=CAPTION), augment=VOICE,
            objectives=[matching(("audio", "text"))], batch_size=32, interval=2,
        ),
        Task(
            name="speech_class", source=SPEECH, views=Views(audio=AUDIO), augment=VOICE,
            objectives=[Classification(modality="audio", num_classes=10, label_smoothing=0.1)], batch_size=32, interval=2,
        ),
    ]  # fmt: skip


def evaluations() -> list[Evaluation]:
    """Zero-shot classification of each modality by the corpus' own way of speaking, and retrieval by captions."""
    return [
        Evaluation(
            name="image", modality="vision", source=IMAGES, views=Views(vision=IMAGE, text=CAPTION),
            templates=["a photo of a {}", "a photo of an {}"],
        ),
        Evaluation(
            name="video", modality="vision", source=VIDEOS, views=Views(vision=VIDEO, text=CAPTION), templates=["a person {}"]
        ),
        Evaluation(
            name="audio", modality="audio", source=SPEECH, views=Views(audio=AUDIO, text=CAPTION),
            templates=["a voice saying {}"],
        ),
    ]  # fmt: skip


def real_small() -> RunConfig:
    """One sparse encoder of 4 experts on six tasks; see the head of this file."""
    return RunConfig(
        name="real_small",
        model=ModelSettings(
            size="tiny", vision_patch=(4, 4, 4), vision_max=(16, 64, 64), audio_patch=(4, 16), audio_max=(128, 64), text_max=32,
            common_dim=128, num_experts=4, moe_layers="every:2", group_examples=1, router_z_loss=1e-3,
        ),
        data=DataSettings(root="data/real", vocab_size=256, audio=audio().model_copy(update={"normalize": True})),
        tasks=tasks(),
        evaluations=evaluations(),
        train=TrainSettings(steps=6000, log_every=100, eval_every=1000, save_every=1000),
        optimizer=OptimizerSettings(peak_rate=8e-4, warmup_rate=1e-6, warmup_steps=200, final_rate=1e-5, weight_decay=0.05),
    )  # fmt: skip


def real_small_debug() -> RunConfig:
    """`real_small` in two narrow layers, with tiny batches and short: seconds on one core.

    imp_ds train real_small_debug --set data.root=DIR
    """
    run = real_small()
    run.name = "real_small_debug"
    run.model.hidden_size, run.model.intermediate_size, run.model.num_hidden_layers, run.model.num_attention_heads = 64, 128, 2, 4
    for task in run.tasks:
        task.batch_size, task.interval = 8, 1
    run.train = TrainSettings(steps=12, log_every=1, eval_every=0, save_every=0)
    run.optimizer.warmup_steps = 4
    return run
