"""The experts' feed-forwards on the CPU: one pass over the experts, in buffers that are used again.

A batched matrix product cannot take experts of different numbers of rows, and autograd over a loop allocates, and zeroes, a
stack of all weights for each expert. Here every product writes straight to its place (`out=`), also the weights' gradients.
Kept for the backward is only what enters the activation; the rest of the hidden layer is cheaper to compute again than to keep.

Shapes: N rows in the order of their experts, E experts, D width, F feed-forward width, R rows of a block.
"""

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

# gelu(h) = h * sigmoid(h * (LINEAR + CUBIC * h^2)), as 0.5 * (1 + tanh(u)) is sigmoid(2 u) (Hendrycks and Gimpel, 1606.08415).
# A sigmoid is four times as fast as a tanh, and one gives both the value and the slope.
LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = LINEAR * 0.044715
BLOCK_ELEMENTS = 1 << 17  # of the activation at a time: half a MiB in float32, so that its steps meet in a core's own cache
FRESH_BYTES = 32 << 20  # what malloc does not keep for the next call: such memory comes from the kernel each time


def cpu_experts(x_ND: Tensor, count: list[int], w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None) -> Tensor:
    """gelu(x w1) w2, or (gelu(x w1) * x w3) w2, of each expert on its `count[e]` rows: [N, D] -> [N, D].

    Differentiable once, in x and the weights, which are all of one floating-point type.
    """
    inputs = (x_ND, w1_EDF, w2_EFD, w3_EDF)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    return _forward(x_ND, count, w1_EDF, w2_EFD, w3_EDF, keep)[0]


@torch.library.custom_op("imp_ds::cpu_experts", mutates_args=(), device_types="cpu")
def _forward(
    x_ND: Tensor, count: list[int], w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The answers, and what enters the activation and the gate, [N, F] each; these are empty unless `keep` asks for them."""
    most, hidden = max(count), w1_EDF.shape[2]
    y_ND = torch.empty_like(x_ND, memory_format=torch.contiguous_format)
    h_NF = _empty(x_ND, len(x_ND) if keep else most, hidden)
    gate_NF = h_NF.new_empty(0) if w3_EDF is None else _empty(h_NF, *h_NF.shape)
    act_NF = h_NF.new_empty(most, hidden)
    for e, (start, rows) in enumerate(_spans(count)):
        here = slice(start, start + rows)
        kept = here if keep else slice(0, rows)
        torch.mm(x_ND[here], w1_EDF[e], out=h_NF[kept])
        _gelu(h_NF[kept], act_NF[:rows])
        if w3_EDF is not None:
            torch.mm(x_ND[here], w3_EDF[e], out=gate_NF[kept])
            act_NF[:rows].mul_(gate_NF[kept])
        torch.mm(act_NF[:rows], w2_EFD[e], out=y_ND[here])
    return (y_ND, h_NF, gate_NF) if keep else (y_ND, h_NF.new_empty(0), h_NF.new_empty(0))


@torch.library.custom_op("imp_ds::cpu_experts_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_ND: Tensor, x_ND: Tensor, h_NF: Tensor, gate_NF: Tensor, count: list[int],
    w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w1, w2 and w3; the last is empty when there is no w3."""
    dx_ND = torch.empty_like(x_ND, memory_format=torch.contiguous_format)
    dw1_EDF, dw2_EFD = _empty(w1_EDF, *w1_EDF.shape), _empty(w2_EFD, *w2_EFD.shape)
    dw3_EDF = x_ND.new_empty(0) if w3_EDF is None else _empty(w3_EDF, *w3_EDF.shape)
    act_RF, dh_RF = h_NF.new_empty(2, max(count), h_NF.shape[1])
    for e, (start, rows) in enumerate(_spans(count)):
        here = slice(start, start + rows)
        x, grad, act, dh = x_ND[here], grad_ND[here], act_RF[:rows], dh_RF[:rows]
        torch.mm(grad, w2_EFD[e].t(), out=dh)
        if w3_EDF is None:
            _gelu_backward(h_NF[here], act, dh)
            torch.mm(act.t(), grad, out=dw2_EFD[e])
            torch.mm(dh, w1_EDF[e].t(), out=dx_ND[here])
        else:
            dgate = _gated_backward(h_NF[here], gate_NF[here], act, dh)
            torch.mm(act.t(), grad, out=dw2_EFD[e])
            torch.mm(x.t(), dgate, out=dw3_EDF[e])
            torch.mm(dh, w1_EDF[e].t(), out=dx_ND[here])
            dx_ND[here].addmm_(dgate, w3_EDF[e].t())
        torch.mm(x.t(), dh, out=dw1_EDF[e])
    return dx_ND, dw1_EDF, dw2_EFD, dw3_EDF


@_forward.register_fake
def _(x_ND, count, w1_EDF, w2_EFD, w3_EDF, keep):
    kept = (len(x_ND), w1_EDF.shape[2]) if keep else (0,)
    return torch.empty_like(x_ND), x_ND.new_empty(kept), x_ND.new_empty(kept if w3_EDF is not None else (0,))


@_backward.register_fake
def _(grad_ND, x_ND, h_NF, gate_NF, count, w1_EDF, w2_EFD, w3_EDF):
    dw3_EDF = x_ND.new_empty(0) if w3_EDF is None else torch.empty_like(w3_EDF)
    return torch.empty_like(x_ND), torch.empty_like(w1_EDF), torch.empty_like(w2_EFD), dw3_EDF


def _save(ctx, inputs, output) -> None:
    x_ND, ctx.count, *weights, _ = inputs
    ctx.set_materialize_grads(False)  # what is only kept has no gradient: do not make one of zeros
    ctx.save_for_backward(x_ND, *output[1:], *weights)


def _differentiate(ctx, grad_ND, *_):
    if grad_ND is None:  # the answers went nowhere
        return (None,) * 6
    x_ND, h_NF, gate_NF, w1_EDF, w2_EFD, w3_EDF = ctx.saved_tensors
    dx_ND, dw1_EDF, dw2_EFD, dw3_EDF = _backward(grad_ND, x_ND, h_NF, gate_NF, ctx.count, w1_EDF, w2_EFD, w3_EDF)
    return dx_ND, None, dw1_EDF, dw2_EFD, None if w3_EDF is None else dw3_EDF, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _empty(like: Tensor, *shape: int) -> Tensor:
    """`like.new_empty(shape)`; where it is large, in huge pages, which the kernel hands out four times as fast as small ones."""
    size = math.prod(shape) * like.element_size()
    if size < FRESH_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


def _spans(count: list[int]) -> list[tuple[int, int]]:
    """(first row, number of rows) of each expert."""
    spans, start = [], 0
    for rows in count:
        spans.append((start, rows))
        start += rows
    return spans


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


def _gelu_slope(h_RF: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(h) and its derivative s + h s' z', where s = sigmoid(z) and z = h (LINEAR + CUBIC h^2)."""
    s_RF = _sigmoid(h_RF)
    slope_RF = torch.addcmul(h_RF.new_tensor(LINEAR), h_RF, h_RF, value=3 * CUBIC)  # z'
    slope_RF.mul_(torch.ops.aten.sigmoid_backward(h_RF, s_RF)).add_(s_RF)
    return s_RF.mul_(h_RF), slope_RF


def _gelu_backward(h: Tensor, act: Tensor, dh: Tensor) -> None:
    """Write gelu(h) to `act`; turn `dh`, the gradient of gelu(h), into that of h."""
    for h_RF, act_RF, dh_RF in _blocks(h, act, dh):
        value_RF, slope_RF = _gelu_slope(_wide(h_RF))
        act_RF.copy_(value_RF)
        dh_RF.mul_(slope_RF)


def _gated_backward(h: Tensor, gate: Tensor, act: Tensor, dh: Tensor) -> Tensor:
    """Write gelu(h) * gate to `act`; turn `dh`, the gradient of that, into that of h; return that of the gate."""
    dgate = torch.empty_like(gate)
    for h_RF, gate_RF, act_RF, dh_RF, dgate_RF in _blocks(h, gate, act, dh, dgate):
        value_RF, slope_RF = _gelu_slope(_wide(h_RF))
        torch.mul(value_RF, gate_RF, out=act_RF)
        torch.mul(dh_RF, value_RF, out=dgate_RF)
        dh_RF.mul_(slope_RF.mul_(gate_RF))
    return dgate
