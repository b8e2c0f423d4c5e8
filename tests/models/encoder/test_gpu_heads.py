"""The heads' queries, keys and values on a GPU against plain torch in float64; without a GPU, in Triton's interpreter (see
tests/moe/test_gpu_experts.py).

Shapes: B batch, L tokens of an example, H heads, D width of a head.
"""

import pytest
import torch
from torch import nn

from helpers.triton_kernels_here import DEVICE, INTERPRETED, import_kernels
from imp_ds.models.imp.encoder.layers import split_heads_plainly

gpu_heads = import_kernels("imp_ds.models.imp.encoder.gpu_heads")
EPS = 1e-5


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def norms(width: int, weights: list[torch.Tensor] | None) -> list[nn.Module]:
    """The norms of queries and keys in float64, with those weights."""
    if weights is None:
        return [nn.Identity(), nn.Identity()]
    found = [nn.LayerNorm(width, eps=EPS, bias=False, dtype=torch.float64, device=DEVICE) for _ in weights]
    for norm, weight in zip(found, weights):
        norm.weight.data.copy_(weight)
    return found


# one row; rows that no block divides, a width that is no power of 2; more blocks than parts in which weights are added up
@pytest.mark.parametrize("batch, length, heads, width", [(1, 1, 1, 8), (3, 7, 3, 12), (2, 9, 4, 16)])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("lies", ["as SDPA has it", "as the linear layer has it"])
def test_heads_and_gradients_are_those_of_autograd(monkeypatch, batch, length, heads, width, normed, lies):
    """float32 rounds to 6e-8 a time; norms of a few numbers that nearly agree magnify it, so 1e-5."""
    monkeypatch.setattr(gpu_heads, "_PARTS", 2)
    qkv = draw(batch, length, 3 * heads * width, seed=0).requires_grad_()
    weights = [draw(width, seed=seed).requires_grad_() for seed in (1, 2)] if normed else None
    # the gradients of the three lie one way or the other; the kernel has to take both
    shape = (batch, heads, length, width) if lies == "as SDPA has it" else (batch, length, heads, width)
    given = [draw(*shape, seed=seed) for seed in (3, 4, 5)]
    directions = given if lies == "as SDPA has it" else [grad.transpose(1, 2) for grad in given]

    found = gpu_heads.gpu_split_heads(qkv, heads, *(weights or [None, None]), EPS)
    grads = torch.autograd.grad(found, [qkv, *(weights or [])], directions)

    exact_qkv, exact_norms = qkv.detach().double().requires_grad_(), norms(width, weights)
    expected = split_heads_plainly(exact_qkv, heads, *exact_norms)
    wanted = [exact_qkv, *(norm.weight for norm in exact_norms if normed)]
    exact_grads = torch.autograd.grad(expected, wanted, [grad.double() for grad in directions])
    for one, other in zip([*found, *grads], [*expected, *exact_grads], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_rounded_once():
    """Computed in float32: off by half a step of bfloat16, 2^-9 of the number, as float64 rounded at the end."""
    qkv, weights = draw(2, 5, 3 * 2 * 16, seed=0).bfloat16(), [draw(16, seed=seed).bfloat16() for seed in (1, 2)]
    found = gpu_heads.gpu_split_heads(qkv, 2, *weights, EPS)
    expected = split_heads_plainly(qkv.double(), 2, *norms(16, weights))
    assert all(part.dtype == torch.bfloat16 for part in found)
    for one, other in zip(found, expected):
        # the interpreter cuts where a GPU rounds
        torch.testing.assert_close(one.double(), other, rtol=2.0**-7 if INTERPRETED else 2.0**-8, atol=1e-6)


@pytest.mark.parametrize("normed", [False, True])
def test_the_operators_keep_their_promises(normed):
    qkv, weights = draw(2, 3, 3 * 2 * 8, seed=0), [draw(8, seed=seed) if normed else None for seed in (1, 2)]
    grads = [draw(2, 2, 3, 8, seed=seed) for seed in (3, 4, 5)]
    if normed:
        torch.library.opcheck(gpu_heads._norm, (qkv, 2, *weights, EPS))
    torch.library.opcheck(gpu_heads._join, (*grads, qkv, *weights, EPS))


@pytest.mark.parametrize("normed", [False, True])
def test_it_stays_one_graph(normed):
    """Results of its own, and results that are views: torch.compile has to distinguish them."""
    qkv = draw(2, 3, 3 * 2 * 8, seed=0).requires_grad_()
    weights = [draw(8, seed=seed).requires_grad_() if normed else None for seed in (1, 2)]

    def attend(qkv):
        return torch.nn.functional.scaled_dot_product_attention(*gpu_heads.gpu_split_heads(qkv * 1.5, 2, *weights, EPS)).square()

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    wanted = [qkv, *weights] if normed else [qkv]
    found, expected = ([y, *torch.autograd.grad(y.sum(), wanted)] for y in (compiled(qkv), attend(qkv)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
