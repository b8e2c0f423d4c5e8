"""What lies between the experts' matrix products on a GPU, in one pass over memory each: rows gathered, rows summed for each
token, the activation and its gradient.

All of it is bound by memory, so a kernel reads each value once, writes each once, and computes in float32 in between. Nothing
is added with atomics: results are the same at every run.

Shapes: T flat tokens, N rows in the order of their experts, D width, F feed-forward width.
"""

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from imp_ds.moe.kernels.cpu_experts import CUBIC, LINEAR

_LINEAR, _CUBIC = tl.constexpr(LINEAR), tl.constexpr(CUBIC)  # of the gelu; kernels see no other globals
_WIDEST = 1024  # values of a row that a program holds at a time
_COPY_WARPS = 2  # of a program that only moves a row of that width or less: 16 values for each thread


def on_its_device(function: Callable) -> Callable:
    """`function` with the device of its first tensor as the current one, where kernels start: a model that is spread over several
    devices does not change it."""

    @functools.wraps(function)
    def run(first: Tensor, *rest):
        with torch.cuda.device_of(first):
            return function(first, *rest)

    return run


@on_its_device
def take_rows(x_TD: Tensor, index_N: Tensor) -> Tensor:
    """x[index]: [N, D]."""
    y_ND = x_TD.new_empty(len(index_N), x_TD.shape[1])
    if len(index_N):
        _take[(len(index_N),)](x_TD, index_N, y_ND, x_TD.shape[1], _block(x_TD.shape[1]), num_warps=_COPY_WARPS)
    return y_ND


@on_its_device
def sum_rows(y_ND: Tensor, order_N: Tensor, start_T1: Tensor) -> Tensor:
    """For each token the sum of its rows, [T, D], added in float32; zeros where it has none.

    order_N: the rows in the order of their tokens; start_T1, [T + 1]: the place in it where each token's rows begin.
    """
    tokens, width = len(start_T1) - 1, y_ND.shape[1]
    sum_TD = y_ND.new_empty(tokens, width)
    if tokens:
        _sum[(tokens,)](y_ND, order_N, start_T1, sum_TD, width, _block(width), num_warps=_COPY_WARPS)
    return sum_TD


@on_its_device
def activate(h_NF: Tensor, gate_NF: Tensor | None, weight_N: Tensor | None, silu: bool = False) -> Tensor:
    """gelu(h) or silu(h), times the gate, times the row's weight, where there are any: [N, F]."""
    act_NF = torch.empty_like(h_NF)
    rows, width = h_NF.shape
    gated, weighted = gate_NF is not None, weight_N is not None
    if rows:
        _activate[(rows,)](h_NF, gate_NF, weight_N, act_NF, width, _block(width), gated, weighted, silu)
    return act_NF


@on_its_device
def activate_backward(
    dact_NF: Tensor, h_NF: Tensor, gate_NF: Tensor | None, weight_N: Tensor | None, silu: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of h (in the place of `dact_NF`), of the gate and of the weight.

    dact_NF: the gradient of what `activate` gave.
    """
    dgate_NF = None if gate_NF is None else torch.empty_like(gate_NF)
    dweight_N = None if weight_N is None else torch.empty_like(weight_N)
    rows, width = h_NF.shape
    if rows:
        _activate_backward[(rows,)](
            dact_NF, h_NF, gate_NF, weight_N, dgate_NF, dweight_N, width, _block(width), gate_NF is not None,
            weight_N is not None, silu,
        )  # fmt: skip
    return dact_NF, dgate_NF, dweight_N


def _block(width: int) -> int:
    return min(_WIDEST, triton.next_power_of_2(width))


@triton.jit
def _take(x, index, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(index + row)
    for first in range(0, WIDTH, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < WIDTH
        tl.store(y + row * WIDTH + place, tl.load(x + token * WIDTH + place, mask=inside), mask=inside)


@triton.jit
def _sum(y, order, start, total, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    begin = tl.load(start + token)
    end = tl.load(start + token + 1)
    for first in range(0, WIDTH, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < WIDTH
        added = tl.zeros([BLOCK], dtype=tl.float32)
        for i in range(begin, end):
            row = tl.load(order + i)
            added += tl.load(y + row * WIDTH + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + token * WIDTH + place, added, mask=inside)


@triton.jit
def _activate(
    h, gate, weight, act,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, WEIGHTED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    for first in range(0, WIDTH, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < WIDTH
        value = tl.load(h + row * WIDTH + place, mask=inside, other=0.0).to(tl.float32)
        if SILU:
            value = value * tl.sigmoid(value)
        else:
            value = value * tl.sigmoid(value * (_LINEAR + _CUBIC * value * value))
        if GATED:
            value *= tl.load(gate + row * WIDTH + place, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weight + row).to(tl.float32)
        tl.store(act + row * WIDTH + place, value, mask=inside)


@triton.jit
def _activate_backward(
    dact, h, gate, weight, dgate, dweight,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, WEIGHTED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scale = 1.0
    if WEIGHTED:
        scale = tl.load(weight + row).to(tl.float32)
    dot = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, WIDTH, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < WIDTH
        here = row * WIDTH + place
        z = tl.load(h + here, mask=inside, other=0.0).to(tl.float32)
        if SILU:
            slope = tl.sigmoid(z)
            value = z * slope
            slope += value * (1.0 - slope)
        else:
            slope = tl.sigmoid(z * (_LINEAR + _CUBIC * z * z))
            value = z * slope
            slope += value * (1.0 - slope) * (_LINEAR + 3.0 * _CUBIC * z * z)
        grad = tl.load(dact + here, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            factor = tl.load(gate + here, mask=inside, other=0.0).to(tl.float32)
            tl.store(dgate + here, grad * value * scale, mask=inside)
            slope *= factor
            value *= factor
        dot += grad * value
        tl.store(dact + here, grad * slope * scale, mask=inside)
    if WEIGHTED:
        tl.store(dweight + row, tl.sum(dot))
