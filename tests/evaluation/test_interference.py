"""The interference of tasks against constructed cases, a float64 loop over the formula, and numbers derived by hand."""

import pytest
import torch
from PIL import Image

from imp_ds.errors import UserError
from imp_ds.evaluation.interference import Interference, interference
from imp_ds.evaluation.interference_picture import draw_interference, interference_tables, weight_title


def matrix(gradient_KNP: torch.Tensor) -> Interference:
    rounds = [{"w": gradient_KP.clone()} for gradient_KP in gradient_KNP.transpose(0, 1)]
    return interference([f"task{k}" for k in range(len(gradient_KNP))], rounds)["w"]


def by_formula(gradient_KNP: torch.Tensor, *, without_own: bool = True) -> torch.Tensor:
    """The published formula, sum by sum, in float64. A gradient of zero takes no step."""
    g, (tasks, samples, _) = gradient_KNP.double(), gradient_KNP.shape

    def mean_change(i, j, b):
        others = [a for a in range(samples) if a != b or not without_own]
        return sum(g[j, a] @ g[i, b] / g[j, a].norm() for a in others if g[j, a].any()) / len(others)

    ratios = [
        [sum(mean_change(i, j, b) / mean_change(i, i, b) for b in range(samples)) / samples for j in range(tasks)]
        for i in range(tasks)
    ]
    return torch.tensor(ratios, dtype=torch.float64)


def some_gradients(tasks: int, samples: int, seed: int = 0) -> torch.Tensor:
    """Every task has a direction of its own, and each sample some of chance, so that no ratio is of small numbers."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, 1, 20, generator=draw) + 0.3 * torch.randn(tasks, samples, 20, generator=draw)


def test_a_task_with_the_same_the_opposite_and_an_orthogonal_loss():
    g_NP = some_gradients(1, 100)[0]
    apart_NP = torch.cat([torch.zeros_like(g_NP), g_NP], dim=1)  # other elements than those of the first
    g_NP = torch.cat([g_NP, torch.zeros_like(g_NP)], dim=1)
    found = matrix(torch.stack([g_NP, g_NP, -g_NP, apart_NP])).matrix_KK
    expected = [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_size_of_a_loss_does_not_matter():
    g_KNP = some_gradients(2, 10)
    torch.testing.assert_close(matrix(g_KNP * torch.tensor([1.0, 100.0])[:, None, None]).matrix_KK, matrix(g_KNP).matrix_KK)


def test_it_is_the_published_formula():
    g_KNP = some_gradients(3, 7)
    found = matrix(g_KNP)
    torch.testing.assert_close(found.matrix_KK, by_formula(g_KNP), atol=1e-5, rtol=1e-5)
    assert found.averse_K.tolist() == [0, 0, 0]
    # steps of the same number do matter: with them all would be otherwise
    assert (found.matrix_KK - by_formula(g_KNP, without_own=False)).abs().max() > 1e-3


def test_numbers_by_hand():
    # Task 0: g(0) = (3, 0), g(1) = (1, 1). Task 1: g(0) = (0, 2), g(1) = (4, 0). With two samples a is the other one than b.
    # Own change of task 0: b=0: (1,1)/sqrt2 . (3,0) = 3/sqrt2; b=1: (1,0) . (1,1) = 1. Of task 1: both 0.
    # Task 1 on task 0: b=0: (1,0) . (3,0) = 3; b=1: (0,1) . (1,1) = 1. So I_01 = (sqrt2 + 1) / 2.
    found = matrix(torch.tensor([[[3.0, 0], [1, 1]], [[0, 2], [4, 0]]]))
    assert found.matrix_KK[0].tolist() == pytest.approx([1, (2**0.5 + 1) / 2])
    assert not found.matrix_KK[1].isfinite().any()  # it is compared with nothing


def test_samples_that_own_steps_make_worse_are_counted():
    # directions 1, 1, 1, -1: of the last, every own step raises the loss; of the others the mean step is (1 + 1 - 1) / 3
    assert matrix(torch.tensor([[[1.0], [1], [1], [-1]]])).averse_K.tolist() == [1]


def test_a_gradient_of_zero_takes_no_step():
    g_KNP = some_gradients(2, 5)
    g_KNP[1, 2] = 0
    found = matrix(g_KNP).matrix_KK
    torch.testing.assert_close(found, by_formula(g_KNP), atol=1e-5, rtol=1e-5, equal_nan=True)
    # what such a sample is compared with is zero, so the row of its task is not a number
    assert found[0].isfinite().all() and not found[1].isfinite().any()


def test_several_weights_are_measured_apart_and_the_rounds_are_read_twice():
    g_KNP, h_KNP, reads = some_gradients(2, 5), some_gradients(2, 5, seed=1), []

    class Rounds:
        def __iter__(self):
            reads.append(1)
            return ({"g": g_KP.clone(), "h": h_KP.clone()} for g_KP, h_KP in zip(g_KNP.unbind(1), h_KNP.unbind(1)))

    found = interference(["a", "b"], Rounds())
    assert len(reads) == 2
    for name, gradients in (("g", g_KNP), ("h", h_KNP)):
        torch.testing.assert_close(found[name].matrix_KK, matrix(gradients).matrix_KK)


def test_the_mean_between_tasks():
    assert Interference(("a", "b"), torch.tensor([[1.0, 0.5], [-0.25, 1.0]]), torch.zeros(2)).between_tasks == 0.125


def test_one_round_is_refused():
    with pytest.raises(UserError, match="got:     1"):
        matrix(some_gradients(2, 1))


def test_tables_and_picture(tmp_path):
    measured = Interference(("image_text", "speech"), torch.tensor([[1.0, -0.5], [0.25, 1.0]]), torch.tensor([3, 0]))
    found = {"imp.blocks.3.feed_forward.down.weight": measured, "imp.blocks.11.feed_forward.experts.w2": measured}
    assert [weight_title(name) for name in found] == ["layer 3, feed_forward.down", "layer 11, feed_forward.experts.w2"]
    tables = interference_tables(found)
    assert [list(column.cells) for column in tables[0].columns] == [
        ["image_text", "speech"], ["1.00", "0.25"], ["[red]-0.50[/red]", "1.00"], ["3", "0"],
    ]  # fmt: skip
    draw_interference(found, tmp_path / "interference.png", title="a run")
    with Image.open(tmp_path / "interference.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 200
        # red for -0.5 and blue for 1 are there
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
        assert any(r > 200 and g < 150 and b < 150 for r, g, b in colors) and any(b > 80 and r < 30 for r, g, b in colors)
