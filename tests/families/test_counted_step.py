"""A counted step: an operation that was called before on arguments of the same shapes costs and gives the same without a call."""

import pytest
import torch

from helpers.chat_run import make_chat_run
from imp_ds.families import family_of
from imp_ds.families.counted_step import count


class Forgetful(dict):
    """Knows nothing, so that every operation is called."""

    def get(self, key, default=None):
        return default


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("trainable", [None, ["uni_moe.connectors.*"]])
def test_what_is_known_equals_what_is_called(tmp_path, experts, trainable):
    run = make_chat_run(tmp_path, train={"trainable": trainable})
    run = run.model_copy(update={"model": run.model.model_copy(update={"num_experts": experts})})
    cost, known = family_of(run).cost(run), {}
    batch, layers = cost._batch(run.tasks[0], 40, samples=2), cost._layers
    called = count(cost.model, batch, layers, Forgetful())
    assert count(cost.model, batch, layers, known) == called
    met = len(known)
    assert count(cost.model, batch, layers, known) == called and len(known) == met < len(called.kernels)


def test_layouts_types_and_devices_are_told_apart():
    """A transposed product, a mean of other numbers and a sum on the CPU are not those before."""
    rows = torch.empty(4, 6, device="meta")
    known = {}

    class Steps(torch.nn.Module):
        def blocks(self):
            return []

        def forward(self, batch):
            self.given = [rows + 1, rows.t() + 1, rows.half() + 1, rows > 1, rows > 1.0, torch.ones(2) + 1]
            weight = torch.nn.Parameter(torch.empty(6, 2, device="meta"))
            return type("Output", (), {"loss": (rows @ weight).sum()})

    steps = Steps()
    for _ in range(2):
        counted = count(steps, None, [], known)
    assert [tensor.stride() for tensor in steps.given[:2]] == [(6, 1), (1, 6)]
    assert [tensor.dtype for tensor in steps.given[2:5]] == [torch.float16, torch.bool, torch.bool]
    assert steps.given[5].tolist() == [2.0, 2.0]
    assert sum(kernel.flops for kernel in counted.kernels) == 2 * 2 * 4 * 6 * 2  # of the product, and of its weight's gradient
