"""Which probes are run, on how many samples of each class, and how often these are drawn.

Shapes: R rows of a split, N training rows, M test rows, D width.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator

from imp_ds.errors import UserError
from imp_ds.evaluation.probes.knn import knn_predictions
from imp_ds.evaluation.probes.least_squares import least_squares_predictions
from imp_ds.evaluation.probes.logistic import LEAST_ROWS, chosen_c_predictions, given_c_predictions
from imp_ds.records import Record

ALL = "all"
_DRAWS = 11  # what a random generator is for: the first word of its seed (`imp_ds.data.order.order` has others)


class ProbeOptions(Record):
    """What is probed; the defaults are cheap enough to run while a model trains."""

    methods: list[Literal["knn", "least_squares", "logistic", "clip"]] = Field(
        ["knn", "least_squares"], min_length=1,
        description="nearest neighbours (DINOv2), regression in closed form (V-MoE, big_vision), logistic regression with C "
        "chosen from 45 values (DINOv2), or with that of `c` (CLIP)",
    )  # fmt: skip
    per_class: list[Annotated[int, Field(ge=1)] | Literal["all"]] = Field(
        [1, 5, 10, 25], min_length=1, description="training samples of each class; all: every one, drawn once"
    )
    draws: int = Field(3, ge=1, description="sets of training samples that are drawn for each number, except for all")
    seed: int = Field(0, ge=0, description="of the draws")
    neighbours: list[Annotated[int, Field(ge=1)]] = Field(
        [10, 20, 100, 200], min_length=1, description="knn: how many vote, and as many as there are samples of each class"
    )
    temperature: float = Field(0.07, gt=0, description="knn: of the votes")
    l2: float = Field(1024.0, gt=0, description="least_squares: penalty on the squared weights")
    c: float = Field(0.316, gt=0, description="clip: inverse of the penalty's strength")

    @model_validator(mode="after")
    def _something_is_measured(self):
        if self.methods == ["logistic"] and ALL not in self.per_class:
            raise ValueError('methods: logistic is of all samples of each class, but per_class does not have "all"')
        return self


class Features(NamedTuple):
    """Rows of a split: features float [N, D], labels int64 [N] (0 or more), and their numbers in the split, int64 [N]."""

    vectors_ND: torch.Tensor
    label_N: torch.Tensor
    rows_N: torch.Tensor


class Score(NamedTuple):
    """Top-1 accuracies of a probe, one for each draw. measure: "knn20_all", "least_squares_5", "logistic_all"."""

    measure: str
    values: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """The standard deviation over the draws (n - 1); 0 of a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


def drawn_rows(label_R: np.ndarray, per_class: int | str, seed: int, draw: int) -> np.ndarray:
    """Numbers of `per_class` rows of each class, all where a class has fewer, in ascending order: a pure function of labels,
    seed and draw. A smaller number of a draw is part of a larger one. Rows with a negative label belong to no class."""
    if per_class == ALL:
        return np.flatnonzero(label_R >= 0)
    stream = np.random.default_rng([_DRAWS, seed, draw])
    classes = range(int(label_R.max(initial=-1)) + 1)
    each = [stream.permutation(np.flatnonzero(label_R == k))[:per_class] for k in classes]
    return np.sort(np.concatenate(each)) if each else np.empty(0, np.int64)


def draws(options: ProbeOptions) -> Iterator[tuple[int | str, int]]:
    """(samples of each class, number of the draw)."""
    for per_class in options.per_class:
        yield from ((per_class, draw) for draw in range(1 if per_class == ALL else options.draws))


def probe(
    train: Features, test: Features, options: ProbeOptions = ProbeOptions(), label_R: np.ndarray | None = None
) -> list[Score]:
    """The accuracy of each method on the test rows, for each number of samples per class.

    label_R: the label of each row of the training split, by which samples are drawn; None: the rows of `train` are all of it.
        Rows that are drawn and not in `train`, since they cannot be read, are left out.

    Logistic regression with a chosen C is of all samples alone, and of 20 or more: a tenth of a few chooses nothing. Raises
    UserError where there are no training or no test rows, or those of a single class alone.
    """
    if not len(train.label_N) or not len(test.label_N):
        raise UserError("there is nothing to probe", got=f"{len(train.label_N)} training rows, {len(test.label_N)} test rows")
    if label_R is None:
        label_R = np.full(int(train.rows_N.max()) + 1, -1)
        label_R[train.rows_N.cpu().numpy()] = train.label_N.cpu().numpy()
    found: dict[str, list[float]] = {}
    for per_class, draw in draws(options):
        rows = torch.from_numpy(drawn_rows(label_R, per_class, options.seed, draw)).to(train.rows_N.device)
        drawn_N = torch.isin(train.rows_N, rows)
        if not drawn_N.any():
            raise UserError("none of the drawn training samples can be used", got=f"{len(rows)} drawn", fix="a larger per_class")
        vectors_ND, label_N = train.vectors_ND[drawn_N], train.label_N[drawn_N]
        for measure, predicted_M in _predictions(vectors_ND, label_N, test.vectors_ND, per_class, options):
            right = (predicted_M.to(test.label_N.device) == test.label_N).double().mean().item()
            found.setdefault(f"{measure}_{per_class}", []).append(right)
    return [Score(measure, values) for measure, values in found.items()]


def _predictions(
    train_ND: torch.Tensor, label_N: torch.Tensor, test_MD: torch.Tensor, per_class: int | str, options: ProbeOptions
) -> Iterator[tuple[str, torch.Tensor]]:
    """The name of each classifier, and its predictions int64 [M]."""
    for method in options.methods:
        if method == "knn":
            ks = options.neighbours if per_class == ALL else [k for k in {*options.neighbours, per_class} if k <= per_class]
            for k, predicted_M in knn_predictions(train_ND, label_N, test_MD, ks, options.temperature).items():
                yield f"knn{k}", predicted_M
        elif method == "least_squares":
            yield method, least_squares_predictions(train_ND, label_N, test_MD, options.l2)
        elif method == "clip":
            yield method, given_c_predictions(train_ND, label_N, test_MD, options.c)
        elif per_class == ALL and len(label_N) >= LEAST_ROWS:
            yield method, chosen_c_predictions(train_ND, label_N, test_MD)[0]
