"""What a classification head reaches on samples that it was not trained on: its loss and its accuracy.

Shapes: N rows that can be used, K classes, B entries of a batch.
"""

from collections.abc import Iterable, Iterator

import torch

from imp_ds.errors import UserError
from imp_ds.evaluation.embedding import embed_by
from imp_ds.evaluation.evaluator import Evaluator, register_evaluator
from imp_ds.evaluation.metric import ACCURACY, Metric, Shown
from imp_ds.evaluation.split import CACHE_MB, CachedBatches, Split
from imp_ds.evaluation.task_heads import heads, labels_of_head
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.modalities.views import Views
from imp_ds.objectives.objective import ClassObjective
from imp_ds.tasks import Batch, Task


@register_evaluator
class HeadEvaluator(Evaluator):
    """`run(model)` yields, over all usable rows of a split:

    heads/{name}/loss: mean cross-entropy, without label smoothing, of the probabilities that the head gives; under sigmoid the
        mean over the classes of the binary one;
    heads/{name}/top1: share whose likeliest class is the right one, and top5 where there are more than 5 classes.

    A long recording has the mean of its windows' probabilities. A row that cannot be used, or whose label is none of the head's
    classes, is left out, and counted as left_out/{name} where there are any.

    Args:
        task: whose head it is; its first view is used, without anything random.
        position: of the objective among the task's.
        parts: for each source of the task this rank's batches of the split (`imp_ds.data.loading.evaluation_batches`), to be had
            again at each run, and the label of each of its rows, int64 [rows].
        name: what the head is called in the results.
    """

    kind = "heads"
    family = "imp"
    reads_heads = True

    def __init__(self, task: Task, position: int, parts: list[tuple[Iterable[Batch], torch.Tensor]], name: str):
        self.task, self.name, self._position, self._parts = task, name, position, parts

    @classmethod
    def build(cls, split: Split, record: Evaluation) -> "HeadEvaluator":
        fix = "leave it out: the heads of each task are measured where its sources have the split"
        raise UserError(f"evaluation {record.name}: the evaluator {cls.kind} measures tasks", got="an evaluation", fix=fix)

    @classmethod
    def serves_task(cls, task: Task) -> bool:
        return bool(heads(task))

    @classmethod
    def build_for_task(cls, split: Split, task: Task) -> "list[Evaluator]":
        found, labels = [], [split.labels(source) for source in task.sources]
        names = [split.reader(source).class_names for source in task.sources]
        for position, objective, name in heads(task):
            views = Views(**{objective.modality: getattr(task.views, objective.modality)})
            make = [split.batches(source, views, f"head {name}") for source in task.sources]
            labels_R = [labels_of_head(label_R, known, objective.names) for label_R, known in zip(labels, names)]
            parts = [(CachedBatches(batches, CACHE_MB // len(make)), label_R) for batches, label_R in zip(make, labels_R)]
            found.append(cls(task, position, parts, name))
        return found

    def run(self, model: ImpForPreTraining) -> Iterator[Metric]:
        """All ranks call this together and get the same values."""
        objective: ClassObjective = model.objectives[self.task.name].parts[self._position]
        probabilities_NK, label_N, left_out = self._probabilities(model, objective)
        if left_out:
            yield Metric(f"left_out/{self.name}", float(left_out), "count")
        if not len(label_N):
            return
        loss = held_out_loss(probabilities_NK, label_N, objective.loss)
        yield Metric(f"heads/{self.name}/loss", loss, "nats", "lower", Shown("heads", "loss "))
        for k in (1, 5) if objective.num_classes > 5 else (1,):
            best_Nk = probabilities_NK.topk(k, dim=1).indices
            found_k = (best_Nk == label_N[:, None]).any(1).double().mean().item()
            shown = Shown("heads", panel=ACCURACY, curve=", head", dashed=True) if k == 1 else None
            yield Metric(f"heads/{self.name}/top{k}", found_k, "share", "higher", shown)

    def _probabilities(self, model, objective: ClassObjective) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Of all rows of all sources that can be used, [N, K], their labels [N], and how many rows are left out."""
        device = next(model.parameters()).device
        found, labels, rows = [], [], 0

        def probabilities(batch: Batch):
            batch = Batch(self.task.name, {objective.modality: batch.inputs[objective.modality]}, {})
            condition = model.imp.condition(objective.modality, batch.task)
            encoding = model.imp.encode(objective.modality, batch.inputs[objective.modality], None, condition)
            yield objective.modality, objective.probabilities(model.imp, {objective.modality: encoding}), []

        for batches, label_R in self._parts:
            part = embed_by(probabilities, batches, device, unit=False)
            label_N = label_R[part.rows_N]
            fits_N = (label_N >= 0) & (label_N < objective.num_classes)
            found.append(part.vectors[objective.modality][fits_N.to(device)])
            labels.append(label_N[fits_N])
            rows += len(label_R)
        label_N = torch.cat(labels).to(device)
        return torch.cat(found), label_N, rows - len(label_N)


def held_out_loss(probabilities_NK: torch.Tensor, label_N: torch.Tensor, kind: str) -> float:
    """The mean cross-entropy of classes, `kind` "softmax" or "sigmoid", in nats; in float64."""
    p_NK = probabilities_NK.double().clamp(1e-12, 1 - 1e-12)
    right_N = p_NK.gather(1, label_N[:, None])[:, 0].log()
    if kind == "softmax":
        return -right_N.mean().item()
    wrong_NK = (1 - p_NK).log()
    wrong_N = wrong_NK.sum(1) - wrong_NK.gather(1, label_N[:, None])[:, 0]
    return -((right_N + wrong_N) / p_NK.shape[1]).mean().item()
