"""The router's linear layer on a GPU: float32 logits of bfloat16 tokens, read once and as they are.

A bfloat16 token times a float32 weight is float32 arithmetic, for which the token would be copied at twice its size and
multiplied without the matrix units. But a float32 number is the sum of three bfloat16 numbers, to its last bit but one; so the
matrix units take the tokens as they are, and each part of the weights in turn, and add in float32. The gradient of the weights
splits the logits' gradient in the same way; that of the tokens is rounded to bfloat16 anyway, and two parts will do.

The tokens go on to the code that computes with them: the gradient that comes back from there and that of the logits are added up
in the same pass. Nothing is added with atomics: results are the same at every run. Both directions are operators of
torch.library, so torch.compile keeps one graph.

Shapes: T flat tokens, D width, E experts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imp_ds.moe.kernels.triton_kernels import on_its_device

MOST_EXPERTS = 128  # whose logits a program holds for a block of tokens
# tokens and width of a block, as measured on an H200; the gradient of the weights is bound by other things than what goes along
# the tokens
_TOKENS, _WIDTH = 128, 64
_WEIGHT_TOKENS, _WEIGHT_WIDTH = 64, 128
_PARTS = 64  # in which the gradient of the weights is added up


def gpu_router_logits(x_TD: Tensor, weight_ED: Tensor) -> tuple[Tensor, Tensor]:
    """x weight^T in float32, [T, E], and x. x is bfloat16, weight float32, E at most `MOST_EXPERTS`."""
    return _RouterLogits.apply(x_TD.contiguous(), weight_ED.contiguous())


class _RouterLogits(torch.autograd.Function):
    """A function and no operator, which could not return what it was given."""

    @staticmethod
    def forward(ctx, x_TD, weight_ED):
        ctx.save_for_backward(x_TD, weight_ED)
        return _logits(x_TD, weight_ED), x_TD.view_as(x_TD)

    @staticmethod
    def backward(ctx, grad_TE, dx_TD):
        return _logits_backward(grad_TE.contiguous(), dx_TD.contiguous(), *ctx.saved_tensors)


@torch.library.custom_op("imp_ds::router_logits", mutates_args=())
@on_its_device
def _logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    tokens, width = x_TD.shape
    logits_TE = torch.empty(tokens, len(weight_ED), dtype=torch.float32, device=x_TD.device)
    if tokens:
        blocks = (triton.cdiv(tokens, _TOKENS),)
        _multiply[blocks](x_TD, weight_ED, logits_TE, tokens, width, len(weight_ED), _padded(len(weight_ED)), _TOKENS, _WIDTH)
    return logits_TE


@torch.library.custom_op("imp_ds::router_logits_backward", mutates_args=())
@on_its_device
def _logits_backward(grad_TE: Tensor, dx_TD: Tensor, x_TD: Tensor, weight_ED: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the tokens, that of their other uses (`dx_TD`) included, and of the weights."""
    tokens, width = x_TD.shape
    experts, padded = len(weight_ED), _padded(len(weight_ED))
    sum_TD = torch.empty_like(x_TD)
    if not tokens:
        return sum_TD, torch.zeros_like(weight_ED)
    blocks = (triton.cdiv(tokens, _TOKENS),)
    _token_gradient[blocks](grad_TE, weight_ED, dx_TD, sum_TD, tokens, width, experts, padded, _TOKENS, _WIDTH)
    part_PED = torch.empty(_PARTS, experts, width, dtype=torch.float32, device=x_TD.device)
    of_a_part = triton.cdiv(triton.cdiv(tokens, _PARTS), _WEIGHT_TOKENS) * _WEIGHT_TOKENS
    _weight_gradient[(_PARTS, triton.cdiv(width, _WEIGHT_WIDTH))](
        grad_TE, x_TD, part_PED, tokens, of_a_part, width, experts, padded, _WEIGHT_TOKENS, _WEIGHT_WIDTH
    )  # fmt: skip
    return sum_TD, part_PED.sum(0)


@_logits.register_fake
def _(x_TD, weight_ED):
    return x_TD.new_empty(len(x_TD), len(weight_ED), dtype=torch.float32)


@_logits_backward.register_fake
def _(grad_TE, dx_TD, x_TD, weight_ED):
    return torch.empty_like(x_TD), torch.empty_like(weight_ED)


def _padded(experts: int) -> int:
    """As many as matrix units take."""
    return max(16, triton.next_power_of_2(experts))


@triton.jit
def _parts(value):
    """Three bfloat16 numbers, from large to small, whose sum is a float32 one to its last bit but one."""
    high = value.to(tl.bfloat16)
    rest = value - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _multiply(
    x, weight, logits, tokens,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, PADDED)
    inside, known = token[:, None] < tokens, expert[None, :] < EXPERTS
    total = tl.zeros([TOKENS, PADDED], dtype=tl.float32)
    for first in range(0, WIDTH, BLOCK):
        place = first + tl.arange(0, BLOCK)
        there = place < WIDTH
        rows = tl.load(x + token[:, None] * WIDTH + place[None, :], mask=inside & there[None, :], other=0.0)
        columns = tl.load(weight + expert[None, :] * WIDTH + place[:, None], mask=known & there[:, None], other=0.0)
        high, middle, low = _parts(columns)
        total = tl.dot(rows, low, total)
        total = tl.dot(rows, middle, total)
        total = tl.dot(rows, high, total)
    tl.store(logits + token[:, None] * EXPERTS + expert[None, :], total, mask=inside & known)


@triton.jit
def _token_gradient(
    grad, weight, dx, total_dx, tokens,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, PADDED)
    inside, known = token[:, None] < tokens, expert < EXPERTS
    rows = tl.load(grad + token[:, None] * EXPERTS + expert[None, :], mask=inside & known[None, :], other=0.0)
    rows_high, rows_middle, rows_low = _parts(rows)
    for first in range(0, WIDTH, BLOCK):
        place = first + tl.arange(0, BLOCK)
        there = place[None, :] < WIDTH
        columns = tl.load(weight + expert[:, None] * WIDTH + place[None, :], mask=known[:, None] & there, other=0.0)
        high, middle, low = _parts(columns)
        here = token[:, None] * WIDTH + place[None, :]
        total = tl.dot(rows_middle, high)
        total = tl.dot(rows_high, middle, total)
        total = tl.dot(rows_high, high, total)
        total += tl.load(dx + here, mask=inside & there, other=0.0).to(tl.float32)
        tl.store(total_dx + here, total.to(tl.bfloat16), mask=inside & there)


@triton.jit
def _weight_gradient(
    grad, x, part, tokens, of_a_part,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, PADDED)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known, there = expert[:, None] < EXPERTS, place[None, :] < WIDTH
    total = tl.zeros([PADDED, BLOCK], dtype=tl.float32)
    end = tl.minimum((number + 1) * of_a_part, tokens)
    for first in range(number * of_a_part, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = token < end
        columns = tl.load(grad + token[None, :] * EXPERTS + expert[:, None], mask=known & inside[None, :], other=0.0)
        rows = tl.load(x + token[:, None] * WIDTH + place[None, :], mask=inside[:, None] & there, other=0.0)
        high, middle, low = _parts(columns)
        total = tl.dot(low, rows, total)
        total = tl.dot(middle, rows, total)
        total = tl.dot(high, rows, total)
    tl.store(part + (number * EXPERTS + expert[:, None]) * WIDTH + place[None, :], total, mask=known & there)
