"""The published IMP models (Akbari et al., 2023, arXiv 2305.06324; release `projects/imp/config/`): sizes, tasks, rates.

    deepspeed --hostfile hostfiles/two_nodes --module imp_ds train imp_moe_b --set data.root=DIR --set train.ep_size=8
    imp_ds plan imp_moe_b --nodes 4 --gpus 8

`{data.root}` holds one folder for each task, `images_text`, `images_class` and so on, in the layout of the digits corpus
(`{split}/metadata.jsonl` with file_name, captions, label); another place is named by --set tasks.image_text.source.path=DIR.
The release names its data sets by placeholders, so intervals, batches and numbers of classes are those of its example.
Hardware: the release trained on TPUs of a number that it does not state; `plan` says what a layout needs. None of these
has been trained here: no time and no score is claimed. Each has a debug twin (`imp_b_debug`, ...) that runs on one core.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities import Modality
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Augmentation, Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Contrastive
from imp_ds.tasks import Source, Task

# 256 tokens for each image and video, by resolution, frames or dropped tokens; 64 for a recording; 16 for a text
IMAGE = VisionView(frames=1, height=256, width=256)
VIDEO = VisionView(frames=16, height=256, width=256, drop_rate=0.75)
LOW_VIDEO = VisionView(frames=16, height=128, width=128)
SHORT_VIDEO = VisionView(frames=4, height=256, width=256)
AUDIO = AudioView(seconds=8.192)
CAPTION = TextView(length=16)


# the release crops all pictures; it mirrors and recolours where there are no captions that it could belie
CROP = Augmentation(crop_area=(0.5, 1.0))
CROP_AND_COLOUR = Augmentation(crop_area=(0.5, 1.0), flip=True, colour=0.4)
MASK = Augmentation(spec_masks=2)


def _matching(temperature: float, *pairs: tuple[Modality, Modality]) -> list[Contrastive]:
    return [Contrastive(pairs=list(pairs), temperature=temperature)]


def _naming(modality: Modality, num_classes: int) -> list[Classification]:
    return [Classification(modality=modality, num_classes=num_classes)]


def tasks(temperature: float) -> list[Task]:
    """The six loaders of the release, in its order, with its intervals and batches."""
    seen = dict(vision="file_name", text="captions")
    pair = ("vision", "text")
    return [
        Task(
            name="image_text",
            source=Source(path="images_text", **seen),
            views=Views(vision=IMAGE, text=CAPTION),
            augment=CROP,
            objectives=_matching(temperature, pair),
            interval=1,
            batch_size=8192,
        ),
        Task(
            name="image_class",
            source=Source(path="images_class", vision="file_name", label="label"),
            views=Views(vision=IMAGE),
            augment=CROP_AND_COLOUR,
            objectives=_naming("vision", 1000),
            interval=1,
            batch_size=8192,
        ),
        Task(
            name="video_text",
            source=Source(path="videos_text", **seen),
            views=Views(vision=VIDEO, text=CAPTION),
            additional_views=[Views(vision=LOW_VIDEO, text=CAPTION), Views(vision=SHORT_VIDEO, text=CAPTION)],
            augment=CROP,
            objectives=_matching(temperature, pair),
            interval=12,
            batch_size=8192,
        ),
        Task(
            name="video_class",
            source=Source(path="videos_class", vision="file_name", label="label"),
            views=Views(vision=SHORT_VIDEO),
            augment=CROP_AND_COLOUR,
            objectives=_naming("vision", 700),
            interval=5,
            batch_size=2048,
        ),
        Task(
            name="video_audio_text",
            source=Source(path="videos_audio_text", audio="file_name", **seen),
            views=Views(vision=VIDEO, audio=AUDIO, text=CAPTION),
            additional_views=[Views(vision=LOW_VIDEO, audio=AUDIO, text=CAPTION)],
            augment=CROP,
            objectives=_matching(temperature, pair, ("vision", "audio"), ("audio", "text")),
            interval=12,
            batch_size=8192,
        ),
        Task(
            name="audio_class",
            source=Source(path="audio_class", audio="file_name", label="label"),
            views=Views(audio=AUDIO),
            augment=MASK,
            objectives=_naming("audio", 50),
            interval=8,
            batch_size=2048,
        ),
    ]


SMALL = OptimizerSettings(peak_rate=8e-4, warmup_rate=1e-6, warmup_steps=10_000, final_rate=0.0, decay_steps=200_000)
BASE = OptimizerSettings(
    peak_rate=1e-3, pre_warmup_rate=2e-5, pre_warmup_steps=2_000,
    warmup_rate=5e-6, warmup_steps=25_000, final_rate=1e-6, decay_steps=500_000
)  # fmt: skip
LARGE = OptimizerSettings(
    peak_rate=5e-4, pre_warmup_rate=1e-5, pre_warmup_steps=5_000,
    warmup_rate=1e-6, warmup_steps=50_000, final_rate=1e-6, decay_steps=500_000
)  # fmt: skip


def _run(name: str, size: str, optimizer: OptimizerSettings, steps: int, *, experts: int = 0) -> RunConfig:
    sparse = dict(num_experts=experts, moe_layers="last:6") if experts else {}
    return RunConfig(
        name=name,
        model=ModelSettings(size=size, **sparse),
        data=DataSettings(root="data/imp", workers=8, cache_mb=0, tokenizer="google-t5/t5-base", vocab_size=32100),
        # a high first temperature lets sparse models converge fast during the warmup (release, `config/experiment.py`)
        tasks=tasks(temperature=1.0 if experts else 0.2),
        train=TrainSettings(steps=steps, gradient_checkpointing=True, log_every=1000, eval_every=5000, save_every=5000),
        optimizer=optimizer.model_copy(),
    )


def imp_s() -> RunConfig:
    """IMP-S, dense: 21 M parameters in the encoder, 200,000 steps."""
    return _run("imp_s", "S", SMALL, 200_000)


def imp_b() -> RunConfig:
    """IMP-B, dense: 85 M parameters in the encoder, 500,000 steps."""
    return _run("imp_b", "B", BASE, 500_000)


def imp_moe_b() -> RunConfig:
    """IMP-MoE-B: 16 experts in each of the last 6 layers, 510 M parameters in the encoder, 85 M active for a token."""
    return _run("imp_moe_b", "B", BASE, 500_000, experts=16)


def imp_moe_l() -> RunConfig:
    """IMP-MoE-L: 16 experts in each of the last 6 layers, 1,057 M parameters in the encoder, 302 M active for a token."""
    return _run("imp_moe_l", "L", LARGE, 500_000, experts=16)
