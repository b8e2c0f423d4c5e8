"""The experts' feed-forwards on the CPU: one pass over the experts, in buffers that are used again.

A batched matrix product cannot take experts of different numbers of rows, and autograd over a loop allocates, and zeroes, a
stack of all weights for each expert. Here every product writes straight to its place (`out=`), also the weights' gradients.
Kept for the backward is only what enters the activation, and what comes out at the end; rows and the rest of the hidden layer
are cheaper to gather and compute again than to keep.

Shapes: T flat tokens, N rows in the order of their experts, E experts, D width, F feed-forward width, R rows of one
expert or of a block of them.
"""

import math
import weakref
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

# gelu(h) = h * sigmoid(h * (LINEAR + CUBIC * h^2)), as 0.5 * (1 + tanh(u)) is sigmoid(2 u) (Hendrycks and Gimpel, 1606.08415).
# A sigmoid is several times as fast as a tanh, and one gives both the value and the slope.
LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = LINEAR * 0.044715
BLOCK_ELEMENTS = 1 << 17  # of the activation at a time: half a MiB in float32, so that its steps meet in a core's caches
SMALLEST_BYTES = 1 << 20  # of a gradient whose memory is kept: malloc is good at what is smaller


def cpu_experts(
    x_ND: Tensor, count: list[int], w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, silu: bool = False
) -> Tensor:
    """gelu(x w1) w2, or (gelu(x w1) * x w3) w2, of each expert on its `count[e]` rows: [N, D] -> [N, D]; with `silu` that in the
    place of gelu.

    Differentiable once, in x and the weights, which are all of one floating-point type.
    """
    keep = _needs_gradient(x_ND, w1_EDF, w2_EFD, w3_EDF)
    return _forward(x_ND, None, None, count, w1_EDF, w2_EFD, w3_EDF, keep, silu)[0]


def cpu_mixture(
    x_TD: Tensor, token_index_N: Tensor, weight_N: Tensor, count: list[int],
    w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, silu: bool = False,
) -> Tensor:  # fmt: skip
    """The same on rows that are tokens, [T, D] -> [T, D]: each token's weighted sum. Differentiable in `weight_N` too."""
    keep = _needs_gradient(x_TD, weight_N, w1_EDF, w2_EFD, w3_EDF)
    return _forward(x_TD, token_index_N, weight_N, count, w1_EDF, w2_EFD, w3_EDF, keep, silu)[0]


def _needs_gradient(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)


@torch.library.custom_op("imp_ds::cpu_experts", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor, index_N: Tensor | None, weight_N: Tensor | None, count: list[int],
    w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, keep: bool, silu: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The result, and for the backward what enters the activation and the gate, [N, F], and the unweighted answers, [N, D].

    Without an index, rows and answers are x and the result themselves. What is not there or not to be kept is empty.
    """
    answer_ND = x.new_empty(sum(count), x.shape[1])
    h_NF = x.new_empty(sum(count) if keep else max(count), w1_EDF.shape[2])
    gate_NF = None if w3_EDF is None else torch.empty_like(h_NF)
    act_NF = x.new_empty(max(count), w1_EDF.shape[2])
    y = answer_ND if index_N is None else x.new_zeros(x.shape)
    parts = _by_expert(count, h_NF, gate_NF, act_NF, answer_ND, index_N, weight_N), _unbound(len(count), w1_EDF, w2_EFD, w3_EDF)
    for x_RD, (h, gate, act, answer, index, weight), (w1, w2, w3) in zip(_rows(x, index_N, count), *parts):
        torch.mm(x_RD, w1, out=h)
        _activate(h, act, silu)
        if w3 is not None:
            act.mul_(torch.mm(x_RD, w3, out=gate))
        torch.mm(act, w2, out=answer)
        if index is not None:
            y.index_add_(0, index, answer * weight.unsqueeze(1))
    for_backward = h_NF, gate_NF, None if index_N is None else answer_ND
    return y, *(tensor if keep and tensor is not None else x.new_empty(0, 0) for tensor in for_backward)


@torch.library.custom_op("imp_ds::cpu_experts_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, x: Tensor, index_N: Tensor | None, weight_N: Tensor | None, h_NF: Tensor, gate_NF: Tensor, answer_ND: Tensor,
    count: list[int], w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, silu: bool = False, trained: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, the rows' weights, w1, w2 and w3; empty for what is not there, and for experts that are not `trained`."""
    dx_all = x.new_empty(x.shape) if index_N is None else x.new_zeros(x.shape)
    weights = w1_EDF, w2_EFD, w3_EDF
    wanted = [weight if trained else None for weight in weights]
    gradients = dw1_EDF, dw2_EFD, dw3_EDF = [None if weight is None else GRADIENTS.empty_like(weight) for weight in wanted]
    dweight_N = None if index_N is None else torch.empty_like(weight_N)
    act_NF, dh_NF = h_NF.new_empty(2, max(count), h_NF.shape[1])
    rows = _rows(x, index_N, count), _rows(grad, index_N, count)
    kept = _by_expert(count, h_NF, None if w3_EDF is None else gate_NF, None if index_N is None else answer_ND, weight_N, index_N)
    written = _by_expert(count, act_NF, dh_NF, dx_all if index_N is None else None, dweight_N)
    for x_RD, grad_RD, (h, gate, answer, weight, index), (act, dh, dx, dweight), (w1, w2, w3), (dw1, dw2, dw3) in zip(
        *rows, kept, written, _unbound(len(count), *weights), _unbound(len(count), *gradients)
    ):
        if index is not None:
            torch.sum(grad_RD * answer, 1, out=dweight)
            dx = grad_RD.mul_(weight.unsqueeze(1))  # a copy of this expert's own, which is free again after dw2
        torch.mm(grad_RD, w2.t(), out=dh)
        dgate = _activate_backward(h, act, dh, silu) if w3 is None else _gated_backward(h, gate, act, dh, silu)
        if trained:
            torch.mm(act.t(), grad_RD, out=dw2)
            torch.mm(x_RD.t(), dh, out=dw1)
        torch.mm(dh, w1.t(), out=dx)
        if w3 is not None:
            if trained:
                torch.mm(x_RD.t(), dgate, out=dw3)
            dx.addmm_(dgate, w3.t())
        if index is not None:
            dx_all.index_add_(0, index, dx)
    return dx_all, *(x.new_empty(0) if gradient is None else gradient for gradient in (dweight_N, dw1_EDF, dw2_EFD, dw3_EDF))


@_forward.register_fake
def _(x, index_N, weight_N, count, w1_EDF, w2_EFD, w3_EDF, keep, silu=False):
    rows, hidden = sum(count), w1_EDF.shape[2]
    shapes = (rows, hidden), w3_EDF is not None and (rows, hidden), index_N is not None and (rows, x.shape[1])
    return x.new_empty(x.shape), *(x.new_empty((keep and shape) or (0, 0)) for shape in shapes)


@_backward.register_fake
def _(grad, x, index_N, weight_N, h_NF, gate_NF, answer_ND, count, w1_EDF, w2_EFD, w3_EDF, silu=False, trained=True):
    given = x, weight_N, *(weight if trained else None for weight in (w1_EDF, w2_EFD, w3_EDF))
    return tuple(x.new_empty(0) if tensor is None else x.new_empty(tensor.shape) for tensor in given)


def _save(ctx, inputs, output) -> None:
    x, index_N, weight_N, ctx.count, *weights, _, ctx.silu = inputs
    ctx.set_materialize_grads(False)  # what is only kept has no gradient: do not make one of zeros
    ctx.save_for_backward(x, index_N, weight_N, *output[1:], *weights)


def _differentiate(ctx, grad, *_):
    if grad is None:  # the result went nowhere
        return (None,) * 9
    *others, w1_EDF, w2_EFD, w3_EDF = ctx.saved_tensors
    trained = any(ctx.needs_input_grad[4:7])
    dx, dweight_N, *of_weights = _backward(grad, *others, ctx.count, w1_EDF, w2_EFD, w3_EDF, ctx.silu, trained)
    dweight_N = None if others[2] is None else dweight_N
    of_weights = [None if weight is None or not trained else dw for weight, dw in zip((w1_EDF, w2_EFD, w3_EDF), of_weights)]
    return dx, None, dweight_N, None, *of_weights, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _rows(x: Tensor, index_N: Tensor | None, count: list[int]) -> Iterable[Tensor]:
    """Each expert's rows, [R, D]: parts of x, or copies, made when their turn comes, where an index chooses them."""
    return x.split(count) if index_N is None else (x.index_select(0, index_R) for index_R in index_N.split(count))


def _by_expert(count: list[int], *tensors: Tensor | None) -> Iterable[tuple]:
    """Each expert's rows of the tensors; those that have room for the largest expert alone are used by all in turn."""
    nothing, total = [None] * len(count), sum(count)
    return zip(*(
        nothing if tensor is None else tensor.split(count) if len(tensor) == total else [tensor[:rows] for rows in count]
        for tensor in tensors
    ))  # fmt: skip


def _unbound(experts: int, *weights: Tensor | None) -> Iterable[tuple]:
    """Each expert's weights."""
    return zip(*([None] * experts if weight is None else weight.unbind() for weight in weights))


def _blocks(*matrices: Tensor):
    """The matrices, of one shape, in slices of rows that fit into a core's cache together."""
    rows, width = matrices[0].shape
    step = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, rows, step):
        yield tuple(matrix[start : start + step] for matrix in matrices)


def _sigmoid(h_RF: Tensor, silu: bool) -> Tensor:
    """What the activation multiplies h with: sigmoid(h) of SiLU, sigmoid(2 u) of the tanh-GELU."""
    return h_RF.sigmoid() if silu else _polynomial(h_RF, CUBIC).mul_(h_RF).sigmoid_()


def _polynomial(h_RF: Tensor, factor: float) -> Tensor:
    """LINEAR + factor h^2, in one pass."""
    return torch.addcmul(torch.scalar_tensor(LINEAR, dtype=h_RF.dtype), h_RF, h_RF, value=factor)


def _wide(h_RF: Tensor) -> Tensor:
    return h_RF if h_RF.dtype is torch.float64 else h_RF.float()


def _activate(h: Tensor, act: Tensor, silu: bool) -> None:
    """Write gelu(h), or silu(h), to `act`."""
    for h_RF, act_RF in _blocks(h, act):
        h_RF = _wide(h_RF)
        torch.mul(h_RF, _sigmoid(h_RF, silu), out=act_RF)


def _sigmoid_and_slope(h_RF: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """s = sigmoid(z), where z is h, or h (LINEAR + CUBIC h^2) for gelu, and the derivative of h s, which is s + h s' z'."""
    s_RF = _sigmoid(h_RF, silu)
    if silu:
        return s_RF, torch.ops.aten.sigmoid_backward(h_RF, s_RF).add_(s_RF)
    dz_RF = _polynomial(h_RF, 3 * CUBIC)
    return s_RF, torch.addcmul(s_RF, torch.ops.aten.sigmoid_backward(h_RF, s_RF), dz_RF, out=dz_RF)


def _activate_backward(h: Tensor, act: Tensor, dh: Tensor, silu: bool) -> None:
    """Write the activation of h to `act`; turn `dh`, its gradient, into that of h."""
    for h_RF, act_RF, dh_RF in _blocks(h, act, dh):
        h_RF = _wide(h_RF)
        s_RF, slope_RF = _sigmoid_and_slope(h_RF, silu)
        torch.mul(h_RF, s_RF, out=act_RF)
        dh_RF.mul_(slope_RF)


def _gated_backward(h: Tensor, gate: Tensor, act: Tensor, dh: Tensor, silu: bool) -> Tensor:
    """Write the activation of h times the gate to `act`; turn `dh`, its gradient, into that of h; return that of the gate."""
    dgate = torch.empty_like(gate)
    for h_RF, gate_RF, act_RF, dh_RF, dgate_RF in _blocks(h, gate, act, dh, dgate):
        h_RF = _wide(h_RF)
        s_RF, slope_RF = _sigmoid_and_slope(h_RF, silu)
        value_RF = s_RF.mul_(h_RF)
        torch.mul(value_RF, gate_RF, out=act_RF)
        torch.mul(dh_RF, value_RF, out=dgate_RF)
        dh_RF.mul_(slope_RF.mul_(gate_RF))
    return dgate


class GradientMemory:
    """Memory for the gradients of stacked weights, kept from one step to the next: it hands out uninitialised tensors, and takes
    their memory back when autograd and optimizer have let go of them.

    malloc hands a block of such a size back to the kernel as soon as it is freed, and the kernel gives it again page by page,
    zeroed, which can take a tenth of the layer's step. Gradients of the same sizes are freed in every step and asked for in the
    next.

    It never holds more than was in use at one time. It knows of no model: what a gradient was, it may be again for another.
    """

    def __init__(self):
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)

    def empty_like(self, weight: Tensor) -> Tensor:
        """A contiguous tensor on the CPU of the weight's shape and type; its elements are whatever was there."""
        size = weight.numel() * weight.element_size()
        if size < SMALLEST_BYTES:
            return weight.new_empty(weight.shape)
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        lease = block.view()  # the tensor's storage holds it, so it ends when the last tensor on it does
        weakref.finalize(lease, free.append, block).atexit = False
        return torch.frombuffer(lease, dtype=weight.dtype).view(weight.shape)


GRADIENTS = GradientMemory()  # one for the process, as malloc is: no result depends on it
