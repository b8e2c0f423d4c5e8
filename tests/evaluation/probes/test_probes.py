"""Each probe against an independent computation in numpy and float64, or against scikit-learn's own call."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from imp_ds.errors import UserError
from imp_ds.evaluation.probes import Features, ProbeOptions, drawn_rows, probe
from imp_ds.evaluation.probes.knn import knn_predictions
from imp_ds.evaluation.probes.least_squares import least_squares_predictions
from imp_ds.evaluation.probes.logistic import chosen_c_predictions, given_c_predictions

CLASSES, WIDTH = 4, 12


def features(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clouds that overlap: no classifier is right everywhere. float32 [N, D], int64 [N]."""
    draw = np.random.default_rng(seed)
    centre_CD = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    label_N = draw.integers(0, CLASSES, rows)
    return (centre_CD[label_N] + 1.3 * draw.normal(size=(rows, WIDTH)) + 5).astype(np.float32), label_N


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def test_neighbours_equal_a_computation_row_by_row():
    (x, y), (t, _) = features(60, 0), features(40, 1)
    found = knn_predictions(*tensors(x, y, t), [1, 10, 20, 200])
    assert list(found) == [1, 10, 20]  # there are no 200 neighbours
    unit = lambda a: a.astype(np.float64) / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True)  # noqa: E731
    for row, cosines in enumerate(unit(t) @ unit(x).T):
        near = np.argsort(-cosines)[:20]
        weights = np.exp(cosines[near] / 0.07) / np.exp(cosines[near] / 0.07).sum()
        for k, predicted in found.items():
            votes = [weights[:k][y[near[:k]] == c].sum() for c in range(CLASSES)]
            assert predicted[row] == int(np.argmax(votes))


@pytest.mark.parametrize("rows", [8, 60])  # fewer than the width, and more
def test_least_squares_equal_the_normal_equations(rows):
    (x, y), (t, _) = features(rows, 2), features(50, 3)
    for l2 in (1024.0, 0.5):
        mean, deviation = x.astype(np.float64).mean(0), x.astype(np.float64).std(0) + 1e-5
        with_bias = lambda a: np.hstack([(a - mean) / deviation, np.full((len(a), 1), 100.0)])  # noqa: E731, B023
        design, target = with_bias(x), 2.0 * np.eye(y.max() + 1)[y] - 1
        weights = np.linalg.solve(design.T @ design + l2 * np.eye(WIDTH + 1), design.T @ target)
        expected = (with_bias(t) @ weights).argmax(1)
        assert (least_squares_predictions(*tensors(x, y, t), l2).numpy() == expected).all()


def test_logistic_regression_equals_that_of_scikit_learn():
    (x, y), (t, _) = features(80, 4), features(50, 5)
    grid = 10.0 ** np.linspace(-6, 5, 5)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0)).numpy()
    held, rest = order[:8], order[8:]
    fit = lambda rows, c: LogisticRegression(C=c, max_iter=1000, tol=1e-12).fit(x[rows].astype(np.float64), y[rows])  # noqa: E731
    scores = [(fit(rest, c).score(x[held].astype(np.float64), y[held]), -c) for c in grid]
    best = -max(scores)[1]  # the smallest C among the best
    predicted, c = chosen_c_predictions(*tensors(x, y, t), grid)
    assert c == best and (predicted.numpy() == fit(slice(None), best).predict(t.astype(np.float64))).all()
    clip = LogisticRegression(C=0.316, max_iter=1000, random_state=0).fit(x.astype(np.float64), y)
    assert (given_c_predictions(*tensors(x, y, t)).numpy() == clip.predict(t.astype(np.float64))).all()
    with pytest.raises(UserError, match="too little"):
        chosen_c_predictions(*tensors(x[:9], y[:9], t))
    with pytest.raises(UserError, match="single class"):
        given_c_predictions(*tensors(x[y == 1], y[y == 1], t))


def test_draws_are_functions_of_seed_and_draw_and_smaller_ones_are_parts_of_larger():
    label_R = np.array([0, 1, -1, 0, 1, 2, 0, 1, 0, -1, 0, 1])
    one, three = drawn_rows(label_R, 1, 0, 0), drawn_rows(label_R, 3, 0, 0)
    assert sorted(label_R[one]) == [0, 1, 2] and sorted(label_R[three]) == [0, 0, 0, 1, 1, 1, 2]  # of class 2 there is one
    assert set(one) <= set(three) and (drawn_rows(label_R, 3, 0, 0) == three).all()
    assert drawn_rows(label_R, "all", 0, 0).tolist() == np.flatnonzero(label_R >= 0).tolist()
    assert len({tuple(drawn_rows(label_R, 2, seed, draw)) for seed in (0, 1) for draw in range(3)}) > 3


def test_a_probe_has_a_value_for_each_draw_and_its_mean_and_spread():
    (x, y), (t, z) = features(90, 6), features(70, 7)
    train, test = (Features(*tensors(a, b, np.arange(len(a)))) for a, b in ((x, y), (t, z)))
    options = ProbeOptions(methods=["knn", "least_squares", "clip"], per_class=[1, 5, "all"], draws=2, neighbours=[3, 20])
    found = {score.measure: score for score in probe(train, test, options)}
    assert list(found) == [
        "knn1_1", "least_squares_1", "clip_1", "knn3_5", "knn5_5", "least_squares_5", "clip_5",
        "knn3_all", "knn20_all", "least_squares_all", "clip_all",
    ]  # fmt: skip
    five = []
    for draw in range(2):
        rows = drawn_rows(y, 5, 0, draw)
        five.append((least_squares_predictions(*tensors(x[rows], y[rows], t)).numpy() == z).mean())
    score = found["least_squares_5"]
    assert score.values == pytest.approx(five) and score.mean == pytest.approx(np.mean(five))
    assert score.spread == pytest.approx(abs(five[0] - five[1]) / 2**0.5)  # of two values
    assert len(found["knn20_all"].values) == 1 and found["knn20_all"].spread == 0
    # rows that were drawn and could not be read are left out
    rows = drawn_rows(y, 5, 0, 0)
    some = Features(*(part[torch.from_numpy(rows[1:])] for part in train))
    left = probe(some, test, options.model_copy(update={"per_class": [5], "draws": 1}), label_R=y)
    expected = (least_squares_predictions(*tensors(x[rows[1:]], y[rows[1:]], t)).numpy() == z).mean()
    assert {score.measure: score.mean for score in left}["least_squares_5"] == pytest.approx(expected)
