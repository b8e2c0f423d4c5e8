"""A loader of a small corpus of images and of speech, with real processors."""

import functools

from imp_ds.config import DataSettings
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.loader import RotatingLoader
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.sources import open_reader
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor
from imp_ds.objectives import Classification, Contrastive
from imp_ds.tasks import Source, Task
from imp_ds.train.schedule import build_schedule

IMAGES = Source(path="images", vision="file_name", text="captions", label="label")
SPEECH = Source(path="speech", audio="file_name", label="label")
ROWS, STEPS = 20, 12


@functools.cache
def processor():
    """Real processors: 16 patches of 32 x 32 pixels, recordings of 0.32 s as 2 x 2 patches, a tokenizer that spells."""
    words = [f"{kind} {i}" for kind in ("images", "number", "this is") for i in range(ROWS)]
    return ImpProcessor(
        ImpImageProcessor(size=32, patch=(4, 8, 8)),
        ImpVideoProcessor(frames=4, size=32, patch=(4, 8, 8)),
        ImpFeatureExtractor(log_mel=dict(frame_length=400, hop_length=160, mel_bins=32), seconds=0.32, patch=(16, 16)),
        train_tokenizer(words, 60, seed=0),
    )


TASKS = [
    Task(name="image_text", source=IMAGES, batch_size=8,
         views=Views(vision=VisionView(height=32, width=32, drop_rate=0.5), text=TextView()),
         objectives=[Contrastive(pairs=[("vision", "text")])]),
    Task(name="speech", source=SPEECH, batch_size=4, interval=2, views=Views(audio=AudioView(seconds=0.32)),
         objectives=[Classification(modality="audio", num_classes=10)]),
]  # fmt: skip


def loader(root, *, collator=None, tasks=TASKS, seed=7, stop_step=STEPS, workers=0, rank=0, world=1, cache_mb=256, window=65536,
           **settings):  # fmt: skip
    data = DataSettings(root=str(root), cache_dir=str(root / "cache"))
    readers = {task.name: [open_reader(root, source, "train", data) for source in task.sources] for task in tasks}
    schedule = build_schedule("rotation", tasks, seed)
    shape = dict(seed=seed, rank=rank, world=world, cache_mb=cache_mb, window=window)
    batches = StepBatches(tasks, schedule, readers, collator or Collator(processor()), **shape)
    return RotatingLoader(batches, stop_step=stop_step, workers=workers, **dict(timeout_s=60) | settings)


def flat(batch):
    tensors = {f"{m}.{name}": t for m, inputs in batch.inputs.items() for name, t in inputs.items()} | {"key": batch.key_B}
    return tensors | {f"targets.{name}": t for name, t in batch.targets.items()}
