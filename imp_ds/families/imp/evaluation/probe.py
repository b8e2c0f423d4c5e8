"""Probes of an encoder: simple classifiers on its pooled features, trained on samples of a source's training split.

Shapes: R rows of a split, N rows that are encoded, D width.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist

from imp_ds.errors import UserError
from imp_ds.evaluation.embedding import embed_by
from imp_ds.evaluation.evaluator import Evaluator, Projection, register_evaluator
from imp_ds.evaluation.metric import ACCURACY, Metric, Shown
from imp_ds.evaluation.probes import Features, ProbeOptions, Score, drawn_rows, draws, probe
from imp_ds.evaluation.split import CachedBatches, Split
from imp_ds.evaluation_record import Evaluation
from imp_ds.modalities.views import Views
from imp_ds.parallel.groups import on_main, world_size
from imp_ds.tasks import Batch

TRAIN = "train"
_SHOWN = {"knn": "knn", "least_squares": "least squares", "logistic": "logistic", "clip": "clip"}
_USUAL = 20  # neighbours: usually the best number, DINOv2 says


@register_evaluator
class ProbeEvaluator(Evaluator):
    """`run(model)` yields probe/{name}/{method}_{n}, the top-1 accuracy of a probe that has seen n training samples of each class
    (the mean over the draws), and probe/{name}/{method}_{n}_spread, its standard deviation over them, where there are several;
    knn has the number of neighbours behind it: probe/image/knn20_all.

    The features are what the tasks' heads read: the mean of the last layer's tokens. Each row is encoded once, of the training
    split those alone that some draw has. A row that cannot be read or has no label is left out, and counted as left_out/{name}.
    Options: `imp_ds.evaluation.probes.ProbeOptions`.
    """

    kind = "probe"
    family = "imp"
    Options = ProbeOptions

    def __init__(self, split: Split, record: Evaluation):
        super().__init__(split, record)
        _check(split, record)
        train = Split(split.run, split.processor, TRAIN, split.batch_size, split.report)
        self.label_R, self._label_R = train.labels(record.source).numpy(), split.labels(record.source)
        self.rows = self._drawn()
        views = Views(**{record.modality: getattr(record.views, record.modality)})
        what = f"{record.name}, features"
        self._train = CachedBatches(train.batches(record.source, views, f"{what} for training", rows=self.rows))
        self._test = CachedBatches(split.batches(record.source, views, what))
        self.vectors_ND: torch.Tensor | None = None

    def run(self, model) -> Iterator[Metric]:
        train, test = self._features(model, self._train), self._features(model, self._test)
        train = train._replace(rows_N=torch.from_numpy(self.rows).to(train.rows_N.device)[train.rows_N])
        train = train._replace(label_N=torch.from_numpy(self.label_R).to(train.rows_N.device)[train.rows_N])
        test = _labelled(test._replace(label_N=self._label_R.to(test.rows_N.device)[test.rows_N]))
        self.vectors_ND = test.vectors_ND
        name, left_out = self.record.name, len(self.rows) + len(self._label_R) - len(train.label_N) - len(test.label_N)
        if left_out:
            yield Metric(f"left_out/{name}", float(left_out), "count")
        scores = self._scores(_labelled(train), test)
        shown = _shown(scores)
        for score in scores:
            yield Metric(f"probe/{name}/{score.measure}", score.mean, "share", "higher", shown.get(score.measure))
            if len(score.values) > 1:
                yield Metric(f"probe/{name}/{score.measure}_spread", score.spread, "share")

    def projection(self, count: int) -> Projection | None:
        return None if self.vectors_ND is None else Projection(self.vectors_ND[:count])

    def _drawn(self) -> np.ndarray:
        """The rows of the training split that some draw has, in ascending order."""
        options = self.options()
        rows = [drawn_rows(self.label_R, per_class, options.seed, draw) for per_class, draw in draws(options)]
        found = np.unique(np.concatenate(rows))
        if not len(found):
            raise UserError(f"evaluation {self.record.name}: the training split has no labels to probe with")
        return found

    def _features(self, model, batches: Iterable[Batch]) -> Features:
        """Of all rows of all ranks that can be read; their numbers are those of the batches, their labels are to come."""
        modality, task = self.record.modality, self.record.task

        def pooled(batch: Batch):
            encoding = model.encode(modality, batch.inputs[modality], condition=model.condition(modality, task))
            yield modality, encoding.pooled_BD.float(), encoding.reports

        found = embed_by(pooled, batches, next(model.parameters()).device, unit=False)
        vectors_ND = found.vectors[modality]
        self.usage = found.usage
        rows_N = found.rows_N.to(vectors_ND.device)
        return Features(vectors_ND, rows_N, rows_N)

    def _scores(self, train: Features, test: Features) -> list[Score]:
        """Computed by rank 0 for all."""
        scores = on_main(lambda: probe(train, test, self.options(), self.label_R), "the probes have failed")
        if world_size() == 1:
            return scores
        shared = [scores]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]


def _labelled(features: Features) -> Features:
    known_N = features.label_N >= 0
    return Features(*(part[known_N] for part in features))


def _shown(scores: list[Score]) -> dict[str, Shown]:
    """Of each method the score that is seen at a glance: of the last number of samples, and of the usual number of neighbours or
    else the most."""
    found = {}
    for measure in (score.measure for score in scores):
        method = next(name for name in _SHOWN if measure.startswith(name))
        usual = measure.startswith(f"knn{_USUAL}_")
        if method != "knn" or usual or not found.get(method, "").startswith(f"knn{_USUAL}_"):
            found[method] = measure
    return {found[m]: Shown("probe", f"{_SHOWN[m]} ", ACCURACY, f", {_SHOWN[m]}", dashed=True) for m in found}


def _check(split: Split, record: Evaluation) -> None:
    where = f"evaluation {record.name}"
    if record.source.label is None:
        raise UserError(f"{where}: a probe learns labels", got="source.label = null", fix="set source.label")
    if getattr(record.views, record.modality, None) is None:  # nor of several modalities together
        raise UserError(
            f"{where} lacks a view", got=", ".join(record.views.names()) or "none", allowed=f"views.{record.modality}"
        )
    if split.name == TRAIN:
        raise UserError(f"{where}: a probe is trained on the split train", got="measured on train", allowed="validation, test")
