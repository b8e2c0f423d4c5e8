"""The contrastive loss of two ranks equals a brute force in float64 over the joined batch: loss and all gradients."""

import contrastive_worker
import pytest
import torch
from contrastive_worker import PAIRS, ROWS, TEMPERATURE, make_rows

from helpers.ranks import run_each_size

pytestmark = pytest.mark.distributed

CASES = {
    f"{len(pairs)}_{positives}": (pairs, positives) for pairs in (PAIRS[:1], PAIRS) for positives in ("diagonal", "equal")
}


def brute_force(pairs, positives: str) -> tuple[float, dict, dict]:
    """The definition, one sample at a time: loss, gradients of the embeddings, gradients of the temperatures."""
    rows, label = make_rows()
    rows = {name: x.requires_grad_() for name, x in rows.items()}
    raw = {pair: torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True) for pair in pairs}
    unit = {name: x / x.square().sum(1, keepdim=True).sqrt() for name, x in rows.items()}
    total = 0.0
    for a, b in pairs:
        for source, target in ((a, b), (b, a)):
            for i in range(ROWS):
                scores = [(unit[source][i] * unit[target][j]).sum() / (raw[a, b] + 1e-6) for j in range(ROWS)]
                good = [s for j, s in enumerate(scores) if (j == i if positives == "diagonal" else label[j] == label[i])]
                share = sum(s.exp() for s in good) / sum(s.exp() for s in scores)
                total = total - share.log() / (ROWS * 2 * len(pairs))
    total.backward()
    gradients = {name: x.grad for name, x in rows.items() if x.grad is not None}
    return total.item(), gradients, {f"{a}_{b}": t.grad for (a, b), t in raw.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{ranks: what they wrote}"""
    return run_each_size(contrastive_worker.compute_all, lambda ranks: (CASES,), tmp_path_factory.mktemp)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_ranks_together_equal_the_joined_batch(folders, case, ranks):
    pairs, positives = CASES[case]
    found = [torch.load(folders[ranks] / f"{case}_{i}.pt") for i in range(ranks)]
    loss, gradients, temperatures = brute_force(pairs, positives)
    # each rank holds the mean over its rows, and the engine averages gradients over ranks
    assert sum(f["loss"] for f in found) / ranks == pytest.approx(loss, abs=1e-6)
    for name, expected in gradients.items():
        joined = torch.cat([f["gradients"][name] for f in found]) / ranks
        torch.testing.assert_close(joined.double(), expected, rtol=1e-5, atol=1e-7)
    for name, expected in temperatures.items():
        mean = sum(f["temperatures"][name] for f in found) / ranks
        torch.testing.assert_close(mean.double().squeeze(0), expected, rtol=1e-5, atol=1e-6)
    assert all(f["gradients"].keys() == gradients.keys() and f["temperatures"].keys() == temperatures.keys() for f in found)
