"""How well a tuned model distinguishes named classes, by the head that it was tuned with.

Shapes: N rows of the split, K classes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from imp_ds.errors import UserError
from imp_ds.evaluation.embedding import embed_by
from imp_ds.evaluation.evaluator import Evaluator, register_evaluator
from imp_ds.evaluation.metric import ACCURACY, Metric, Shown
from imp_ds.evaluation.split import Split
from imp_ds.evaluation.zero_shot import accuracy
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.evaluation.similarity import TextEvaluator
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.objectives.named_classes import NameScores
from imp_ds.tasks import Batch, Task


@register_evaluator
class NamedClassesEvaluator(Evaluator):
    """`run(model)` yields tuned/{name}/loss, the mean cross-entropy, tuned/{name}/top1, and top5 when there are more than 5
    classes, over all usable rows of the split.

    Args:
        by_names: the evaluation of the same rows without that head, whose batches and labels are used.
        task: whose objective tunes.
    """

    kind = "named_classes"
    family = "imp"
    reads_heads = True

    def __init__(self, by_names: TextEvaluator, task: Task):
        self._position = next(position for position, objective in enumerate(task.objectives) if objective.is_tuned)
        self.record = by_names.record
        self._batches, self._labels = by_names.batches, by_names.labels

    @classmethod
    def serves(cls, run, record: Evaluation) -> bool:
        return TextEvaluator.serves(run, record) and _tuned_task(run, record) is not None

    @classmethod
    def build(cls, split: Split, record: Evaluation) -> "NamedClassesEvaluator":
        task = _tuned_task(split.run, record)
        if task is None:
            raise UserError(f"evaluation {record.name}: no task learns its classes", got=f"task = {record.task}", fix="set task")
        return cls(split.evaluator(TextEvaluator.kind, record), task)

    def run(self, model: ImpForPreTraining) -> Iterator[Metric]:
        """All ranks call this together and get the same values."""
        task, modality = self.record.task, self.record.modality
        objective = model.objectives[task].parts[self._position]
        kept = {}  # the names are encoded once

        def logits(batch: Batch):
            batch = Batch(task, {modality: batch.inputs[modality]}, batch.targets)
            encodings = model.encode(batch, kept)
            kept.update({name: found for name, found in encodings.items() if name == NameScores.NAMES})
            yield modality, objective.logits(model.imp, encodings), []

        found = embed_by(logits, self._batches, next(model.parameters()).device, unit=False)
        logits_NK = found.vectors[modality]
        label_N = self._labels[found.rows_N].to(logits_NK.device)
        loss = F.cross_entropy(logits_NK.double(), label_N).item()
        yield Metric(f"tuned/{self.record.name}/loss", loss, "nats", "lower", Shown("tuned", "loss "))
        each_KK = torch.eye(logits_NK.shape[1], device=logits_NK.device)
        for k in (1, 5) if len(each_KK) > 5 else (1,):
            found_k = accuracy(logits_NK, each_KK, label_N, k)
            shown = Shown("tuned", panel=ACCURACY, curve=", tuned") if k == 1 else None
            yield Metric(f"tuned/{self.record.name}/top{k}", found_k, "share", "higher", shown)


def _tuned_task(run, record: Evaluation) -> Task | None:
    """The task of the run that learns the classes of the evaluation by a head of its own, beside their names; None: there is
    none."""
    tuned = (task for task in run.tasks if any(objective.is_tuned for objective in task.objectives))
    return next((task for task in tuned if task.name == record.task), None)
