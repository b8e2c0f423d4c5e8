"""The experts' feed-forwards on the CPU: one pass over the experts, in buffers that are used again.

A batched matrix product cannot take experts of different numbers of rows, and autograd over a loop allocates, and zeroes, a
stack of all weights for each expert. Here every product writes straight to its place (`out=`), also the weights' gradients.
Kept for the backward is only what enters the activation, and what comes out at the end; rows and the rest of the hidden layer
are cheaper to gather and compute again than to keep.

Shapes: T flat tokens, N rows in the order of their experts, E experts, D width, F feed-forward width, R rows of one
expert or of a block of them.
"""

import itertools
import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

# gelu(h) = h * sigmoid(h * (LINEAR + CUBIC * h^2)), as 0.5 * (1 + tanh(u)) is sigmoid(2 u) (Hendrycks and Gimpel, 1606.08415).
# A sigmoid is several times as fast as a tanh, and one gives both the value and the slope.
LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = LINEAR * 0.044715
BLOCK_ELEMENTS = 1 << 17  # of the activation at a time: half a MiB in float32, so that its steps meet in a core's own cache
FRESH_BYTES = 32 << 20  # what malloc does not keep for the next call: such memory comes from the kernel each time


def cpu_experts(x_ND: Tensor, count: list[int], w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None) -> Tensor:
    """gelu(x w1) w2, or (gelu(x w1) * x w3) w2, of each expert on its `count[e]` rows: [N, D] -> [N, D].

    Differentiable once, in x and the weights, which are all of one floating-point type.
    """
    keep = _needs_gradient(x_ND, w1_EDF, w2_EFD, w3_EDF)
    return _forward(x_ND, None, None, count, w1_EDF, w2_EFD, w3_EDF, keep)[0]


def cpu_mixture(
    x_TD: Tensor, token_index_N: Tensor, weight_N: Tensor, count: list[int], w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None
) -> Tensor:
    """The same on rows that are tokens, [T, D] -> [T, D]: each token's weighted sum. Differentiable in `weight_N` too."""
    keep = _needs_gradient(x_TD, weight_N, w1_EDF, w2_EFD, w3_EDF)
    return _forward(x_TD, token_index_N, weight_N, count, w1_EDF, w2_EFD, w3_EDF, keep)[0]


def _needs_gradient(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)


@torch.library.custom_op("imp_ds::cpu_experts", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor, index_N: Tensor | None, weight_N: Tensor | None, count: list[int],
    w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The result, and for the backward what enters the activation and the gate, [N, F], and the unweighted answers, [N, D].

    Without an index, rows and answers are x and the result themselves. What is not there or not to be kept is empty.
    """
    kept_rows, most = (sum(count), max(count)) if keep else (max(count), max(count))
    y = torch.zeros_like(x, memory_format=torch.contiguous_format) if index_N is not None else x.new_empty(x.shape)
    h_NF = _empty(x, kept_rows, w1_EDF.shape[2])
    gate_NF = _empty(x, kept_rows if w3_EDF is not None else 0, w1_EDF.shape[2])
    answer_ND = x.new_empty(kept_rows if index_N is not None else 0, x.shape[1])
    act_NF = h_NF.new_empty(most, h_NF.shape[1])
    for e, here in enumerate(_spans(count)):
        rows = here.stop - here.start
        kept = here if keep else slice(0, rows)
        x_RD = _rows(x, index_N, here)
        torch.mm(x_RD, w1_EDF[e], out=h_NF[kept])
        _gelu(h_NF[kept], act_NF[:rows])
        if w3_EDF is not None:
            torch.mm(x_RD, w3_EDF[e], out=gate_NF[kept])
            act_NF[:rows].mul_(gate_NF[kept])
        answer_RD = y[here] if index_N is None else answer_ND[kept]
        torch.mm(act_NF[:rows], w2_EFD[e], out=answer_RD)
        if index_N is not None:
            y.index_add_(0, index_N[here], answer_RD * weight_N[here, None])
    return (y, h_NF, gate_NF, answer_ND) if keep else (y, *(x.new_empty(0, 0) for _ in range(3)))


@torch.library.custom_op("imp_ds::cpu_experts_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, x: Tensor, index_N: Tensor | None, weight_N: Tensor | None, h_NF: Tensor, gate_NF: Tensor, answer_ND: Tensor,
    count: list[int], w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, the rows' weights, w1, w2 and w3; empty for what is not there."""
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format) if index_N is not None else x.new_empty(x.shape)
    dweight_N = x.new_empty(len(answer_ND))
    dw1_EDF, dw2_EFD = _empty(w1_EDF, *w1_EDF.shape), _empty(w2_EFD, *w2_EFD.shape)
    dw3_EDF = x.new_empty(0) if w3_EDF is None else _empty(w3_EDF, *w3_EDF.shape)
    act_NF, dh_NF = h_NF.new_empty(2, max(count), h_NF.shape[1])
    for e, here in enumerate(_spans(count)):
        rows = here.stop - here.start
        act, dh = act_NF[:rows], dh_NF[:rows]
        x_RD, grad_RD = _rows(x, index_N, here), _rows(grad, index_N, here)
        if index_N is not None:
            torch.sum(grad_RD * answer_ND[here], 1, out=dweight_N[here])
            grad_RD.mul_(weight_N[here, None])
        torch.mm(grad_RD, w2_EFD[e].t(), out=dh)
        if w3_EDF is None:
            _gelu_backward(h_NF[here], act, dh)
        else:
            dgate = _gated_backward(h_NF[here], gate_NF[here], act, dh)
            torch.mm(x_RD.t(), dgate, out=dw3_EDF[e])
        torch.mm(act.t(), grad_RD, out=dw2_EFD[e])
        torch.mm(x_RD.t(), dh, out=dw1_EDF[e])
        dx_RD = torch.mm(dh, w1_EDF[e].t(), out=dx[here] if index_N is None else grad_RD)  # whose last use was dw2
        if w3_EDF is not None:
            dx_RD.addmm_(dgate, w3_EDF[e].t())
        if index_N is not None:
            dx.index_add_(0, index_N[here], dx_RD)
    return dx, dweight_N, dw1_EDF, dw2_EFD, dw3_EDF


@_forward.register_fake
def _(x, index_N, weight_N, count, w1_EDF, w2_EFD, w3_EDF, keep):
    if not keep:
        return torch.empty_like(x), *(x.new_empty(0, 0) for _ in range(3))
    rows, hidden = sum(count), w1_EDF.shape[2]
    gate_NF = x.new_empty(rows if w3_EDF is not None else 0, hidden)
    return torch.empty_like(x), x.new_empty(rows, hidden), gate_NF, x.new_empty(rows if index_N is not None else 0, x.shape[1])


@_backward.register_fake
def _(grad, x, index_N, weight_N, h_NF, gate_NF, answer_ND, count, w1_EDF, w2_EFD, w3_EDF):
    dw3_EDF = x.new_empty(0) if w3_EDF is None else torch.empty_like(w3_EDF)
    return torch.empty_like(x), x.new_empty(len(answer_ND)), torch.empty_like(w1_EDF), torch.empty_like(w2_EFD), dw3_EDF


def _save(ctx, inputs, output) -> None:
    x, index_N, weight_N, ctx.count, *weights, _ = inputs
    ctx.set_materialize_grads(False)  # what is only kept has no gradient: do not make one of zeros
    ctx.save_for_backward(x, index_N, weight_N, *output[1:], *weights)


def _differentiate(ctx, grad, *_):
    if grad is None:  # the result went nowhere
        return (None,) * 8
    *others, w1_EDF, w2_EFD, w3_EDF = ctx.saved_tensors
    dx, dweight_N, dw1_EDF, dw2_EFD, dw3_EDF = _backward(grad, *others, ctx.count, w1_EDF, w2_EFD, w3_EDF)
    dweight_N = None if others[1] is None else dweight_N
    return dx, None, dweight_N, None, dw1_EDF, dw2_EFD, None if w3_EDF is None else dw3_EDF, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _rows(x: Tensor, index_N: Tensor | None, here: slice) -> Tensor:
    """An expert's rows: a copy, where they are chosen by an index."""
    return x[here] if index_N is None else x.index_select(0, index_N[here])


def _empty(like: Tensor, *shape: int) -> Tensor:
    """`like.new_empty(shape)`; where it is large, in huge pages, which the kernel hands out four times as fast as small ones."""
    size = math.prod(shape) * like.element_size()
    if size < FRESH_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


def _spans(count: list[int]) -> list[slice]:
    """The rows of each expert."""
    ends = list(itertools.accumulate(count))
    return [slice(end - rows, end) for rows, end in zip(count, ends)]


def _blocks(*matrices: Tensor):
    """The matrices, of one shape, in slices of rows that fit into a core's cache together."""
    rows, width = matrices[0].shape
    step = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, rows, step):
        yield tuple(matrix[start : start + step] for matrix in matrices)


def _sigmoid(h_RF: Tensor) -> Tensor:
    """sigmoid(2 u) of the tanh-GELU, in float32 at least."""
    z_RF = torch.addcmul(h_RF.new_tensor(LINEAR), h_RF, h_RF, value=CUBIC)
    return z_RF.mul_(h_RF).sigmoid_()


def _wide(h_RF: Tensor) -> Tensor:
    return h_RF if h_RF.dtype is torch.float64 else h_RF.float()


def _gelu(h: Tensor, act: Tensor) -> None:
    """Write gelu(h) to `act`."""
    for h_RF, act_RF in _blocks(h, act):
        h_RF = _wide(h_RF)
        torch.mul(h_RF, _sigmoid(h_RF), out=act_RF)


def _sigmoid_and_slope(h_RF: Tensor) -> tuple[Tensor, Tensor]:
    """s = sigmoid(z) with z = h (LINEAR + CUBIC h^2), and the derivative of gelu(h) = h s, which is s + h s' z'."""
    s_RF = _sigmoid(h_RF)
    dz_RF = torch.addcmul(h_RF.new_tensor(LINEAR), h_RF, h_RF, value=3 * CUBIC)
    return s_RF, torch.addcmul(s_RF, torch.ops.aten.sigmoid_backward(h_RF, s_RF), dz_RF, out=dz_RF)


def _gelu_backward(h: Tensor, act: Tensor, dh: Tensor) -> None:
    """Write gelu(h) to `act`; turn `dh`, the gradient of gelu(h), into that of h."""
    for h_RF, act_RF, dh_RF in _blocks(h, act, dh):
        h_RF = _wide(h_RF)
        s_RF, slope_RF = _sigmoid_and_slope(h_RF)
        torch.mul(h_RF, s_RF, out=act_RF)
        dh_RF.mul_(slope_RF)


def _gated_backward(h: Tensor, gate: Tensor, act: Tensor, dh: Tensor) -> Tensor:
    """Write gelu(h) * gate to `act`; turn `dh`, the gradient of that, into that of h; return that of the gate."""
    dgate = torch.empty_like(gate)
    for h_RF, gate_RF, act_RF, dh_RF, dgate_RF in _blocks(h, gate, act, dh, dgate):
        h_RF = _wide(h_RF)
        s_RF, slope_RF = _sigmoid_and_slope(h_RF)
        value_RF = s_RF.mul_(h_RF)
        torch.mul(value_RF, gate_RF, out=act_RF)
        torch.mul(dh_RF, value_RF, out=dgate_RF)
        dh_RF.mul_(slope_RF.mul_(gate_RF))
    return dgate
