"""The contrastive loss of two ranks equals a brute force in float64 over the joined batch: loss and all gradients."""

import math

import contrastive_worker
import pytest
import torch
from contrastive_worker import PAIRS, ROWS, TEMPERATURE, WIDTH, make_rows

from helpers.ranks import run_each_size

pytestmark = pytest.mark.distributed

CASES = {
    **{
        f"{len(pairs)}_{positives}": dict(pairs=pairs, positives=positives)
        for pairs in (PAIRS[:1], PAIRS) for positives in ("diagonal", "equal")
    },
    **{f"sigmoid_{which}": dict(pairs=PAIRS, positives=which, loss="sigmoid", bias=-2.0) for which in ("diagonal", "equal")},
    **{f"first_{loss}": dict(pairs=PAIRS[:2], loss=loss, bias=-2.0, matryoshka=[2, 5], matryoshka_weights=[1.0, 0.25])
       for loss in ("softmax", "sigmoid")},
}  # fmt: skip


def brute_force(
    pairs, positives="diagonal", loss="softmax", bias=0.0, matryoshka=(), matryoshka_weights=()
) -> tuple[float, dict, dict]:
    """The definition, one pair of samples at a time: loss, gradients of the embeddings, gradients of what is learned beside
    them."""
    rows, label = make_rows()
    rows = {name: x.requires_grad_() for name, x in rows.items()}
    start = dict(value=TEMPERATURE) if loss == "softmax" else dict(log_scale=-math.log(TEMPERATURE), bias=bias)
    learned = {
        f"{a}_{b}.{name}": torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for a, b in pairs for name, value in start.items()
    }  # fmt: skip
    by_pair = {pair: {name: learned[f"{pair[0]}_{pair[1]}.{name}"] for name in start} for pair in pairs}
    total = 0.0
    for width, weight in [(WIDTH, 1.0), *zip(matryoshka, matryoshka_weights)]:
        unit = {name: x[:, :width] / x[:, :width].square().sum(1, keepdim=True).sqrt() for name, x in rows.items()}
        for a, b in pairs:
            one = by_softmax if loss == "softmax" else by_sigmoid
            together = lambda i, j: j == i if positives == "diagonal" else bool(label[j] == label[i])  # noqa: E731
            total = total + weight * one(unit[a], unit[b], together, **by_pair[a, b]) / len(pairs)
    total.backward()
    gradients = {name: x.grad for name, x in rows.items() if x.grad is not None}
    return total.item(), gradients, {name: value.grad for name, value in learned.items()}


def by_softmax(first, second, together, value):
    total = 0.0
    for source, target in ((first, second), (second, first)):
        for i in range(ROWS):
            scores = [(source[i] * target[j]).sum() / (value + 1e-6) for j in range(ROWS)]
            share = sum(s.exp() for j, s in enumerate(scores) if together(i, j)) / sum(s.exp() for s in scores)
            total = total - share.log() / (ROWS * 2)
    return total


def by_sigmoid(first, second, together, log_scale, bias):
    total = 0.0
    for i in range(ROWS):
        for j in range(ROWS):
            logit = log_scale.exp() * (first[i] * second[j]).sum() + bias
            total = total + torch.log1p(torch.exp(-logit if together(i, j) else logit)) / ROWS
    return total


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{ranks: what they wrote}"""
    return run_each_size(contrastive_worker.compute_all, lambda ranks: (CASES,), tmp_path_factory.mktemp)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_ranks_together_equal_the_joined_batch(folders, case, ranks):
    found = [torch.load(folders[ranks] / f"{case}_{i}.pt") for i in range(ranks)]
    loss, gradients, learned = brute_force(**CASES[case])
    # each rank holds the mean over its rows, and the engine averages gradients over ranks
    assert sum(f["loss"] for f in found) / ranks == pytest.approx(loss, abs=1e-6)
    for name, expected in gradients.items():
        joined = torch.cat([f["gradients"][name] for f in found]) / ranks
        torch.testing.assert_close(joined.double(), expected, rtol=1e-5, atol=1e-7)
    for name, expected in learned.items():
        mean = sum(f["learned"][name] for f in found) / ranks
        torch.testing.assert_close(mean.double().squeeze(0), expected, rtol=1e-5, atol=1e-6)
    assert all(f["gradients"].keys() == gradients.keys() and f["learned"].keys() == learned.keys() for f in found)
