"""From speech to images, which no task ever compared: both were named by texts alone, in the space that all tasks share.

A voice finds the images whose vectors are nearest to its own. Each is read as its own task reads it, under that task's
condition; an image is right when it shows the spoken digit.

Shapes: N rows of a split, C width of the common space.
"""

import torch

from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.evaluation_batches import evaluation_batches
from imp_ds.data.sources import labels, open_reader
from imp_ds.evaluation.embedding import embed_by
from imp_ds.evaluation.retrieval import recall
from imp_ds.families.imp.evaluation.sides import LikelihoodSides
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.train.trained_run import TrainedRun

BATCH_SIZE = 64
SPEECH, IMAGES = "speech_digit", "image_digit"  # the tasks that read them


def speech_to_images(trained: TrainedRun, split: str = "test") -> dict[str, float]:
    """{"retrieval/speech_to_image/R@1": share, ...} over the whole split, at 1, 5 and 10."""
    model = trained.load_model().to("cuda" if torch.cuda.is_available() else "cpu").eval()
    (waveform_NC, waveform_N), (image_NC, image_N) = (unit_vectors(trained, model, name, split) for name in (SPEECH, IMAGES))
    found = recall(waveform_NC, image_NC, waveform_N, image_N)
    return {f"retrieval/speech_to_image/R@{k}": share for k, share in found.items()}


@torch.no_grad()
def unit_vectors(trained: TrainedRun, model: ImpForPreTraining, name: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a task reads of a split, by the likelihood head, float32 [N, C], and the labels, int64 [N]."""
    task = trained.run.task(name)
    record = next(record for record in trained.run.evaluations if record.name == name)
    sides = LikelihoodSides(record)
    reader = open_reader(trained.run.data.root, task.source, split, trained.run.data)
    batches = evaluation_batches(reader, Collator(trained.processor), task.views, batch_size=BATCH_SIZE)
    found = embed_by(lambda batch: [sides.query(model.imp, batch)], batches, model.device)
    return found.vectors[record.modality], torch.from_numpy(labels(reader))[found.rows_N].to(model.device)
