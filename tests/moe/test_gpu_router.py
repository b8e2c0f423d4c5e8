"""The router's logits on a GPU against float64; without a GPU, in Triton's interpreter (see test_gpu_experts.py).

Shapes: T flat tokens, D width, E experts.
"""

import pytest
import torch

from helpers.triton_kernels_here import DEVICE, INTERPRETED, import_kernels

gpu_router = import_kernels("imp_ds.moe.kernels.gpu_router")


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter holds bfloat16 as 16 bits, and would multiply those as integers."""
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def create_dot(builder, a, b, *rest):
        a, b = (builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return plain(builder, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def draw(*shape: int, seed: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype).requires_grad_()


@pytest.mark.parametrize("tokens, width, experts", [(1, 8, 2), (200, 72, 5), (130, 64, 16), (70, 200, 40)])
def test_logits_and_gradients_are_those_of_float32(tokens, width, experts):
    """float32 has 2^-24 = 6e-8 for each rounding; the gradient of the tokens is bfloat16, which the interpreter cuts instead of
    rounding it: 2^-8 = 0.004 at most."""
    x, weight = draw(tokens, width, seed=0, dtype=torch.bfloat16), draw(experts, width, seed=1)
    direction, further = draw(tokens, experts, seed=2).detach(), draw(tokens, width, seed=3, dtype=torch.bfloat16).detach()
    logits, same = gpu_router.gpu_router_logits(x, weight)
    dx, dweight = torch.autograd.grad([logits, same], [x, weight], [direction, further])
    x64, weight64, direction64, further64 = (value.detach().double() for value in (x, weight, direction, further))
    expected = [x64 @ weight64.T, direction64 @ weight64 + further64, direction64.T @ x64]
    assert torch.equal(same, x)
    assert logits.dtype == dweight.dtype == torch.float32 and dx.dtype == torch.bfloat16
    for found, exact, limit in zip((logits, dx, dweight), expected, (1e-6, 4e-3, 1e-6)):
        assert (found.double() - exact).norm() < limit * exact.norm()


def test_small_weights_keep_their_last_bits():
    """Weights 2^-20 apart differ in the third bfloat16 part alone; a token of ones must see it."""
    weight = torch.ones(2, 16, device=DEVICE)
    weight[1] += 2.0**-20
    logits, _ = gpu_router.gpu_router_logits(torch.ones(1, 16, device=DEVICE, dtype=torch.bfloat16), weight)
    assert float(logits[0, 1] - logits[0, 0]) == 16 * 2.0**-20  # 16 + 2^-16 has 21 bits: exact in float32


def test_the_operators_keep_their_promises():
    x, further = (draw(70, 24, seed=seed, dtype=torch.bfloat16).detach() for seed in (0, 1))
    weight, grad = draw(3, 24, seed=2).detach(), draw(70, 3, seed=3).detach()
    torch.library.opcheck(gpu_router._logits, (x, weight))
    torch.library.opcheck(gpu_router._logits_backward, (grad, further, x, weight))


def test_it_stays_one_graph():
    x, weight = draw(70, 24, seed=0, dtype=torch.bfloat16), draw(3, 24, seed=1)

    def routed(x):
        logits, same = gpu_router.gpu_router_logits(x * 2, weight)
        return logits.softmax(-1).amax(1, keepdim=True) * same.float()

    compiled = torch.compile(routed, fullgraph=True, backend="aot_eager")
    found, expected = ([y, *torch.autograd.grad(y.square().sum(), [x, weight])] for y in (compiled(x), routed(x)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
