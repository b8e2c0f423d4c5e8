"""The experts on a GPU: products by cuBLAS or as grouped products, what lies between them by Triton, no wait for the device.

    rows = x[index];  h = rows w1;  act = gelu(h) (times rows w3) times the row's weight;  y = act w2;  token = sum of its rows

Or silu in gelu's place. The weight of a row enters before the second product: so its gradient comes out of the same pass as the
activation's, and the answers need not be kept. Kept are the rows, and what enters and leaves the activation, as of a dense
feed-forward: computing what leaves it again would be one more pass over memory. The sum over a token's rows is a gather by the
inverse of the index, in a fixed order.

Each step is one operator of torch.library with its own gradient, so torch.compile keeps one graph around them.

Shapes: T flat tokens, N rows in the order of their experts, E experts held here, D width, F feed-forward width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from imp_ds.moe.kernels import triton_kernels


def gpu_mixture(
    x_TD: Tensor, index_N: Tensor, weight_N: Tensor, count_E: Tensor | None,
    w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, silu: bool = False,
) -> Tensor:  # fmt: skip
    """As `imp_ds.moe.kernels.compute.mixture`; weights of the experts are in the type of x, those of rows in float32."""
    order_N, start_T1 = _inverse(index_N, len(x_TD))
    x_ND = _take(x_TD.contiguous(), index_N, order_N, start_T1)
    y_ND = _experts(x_ND, weight_N, _ends(count_E), w1_EDF, w2_EFD, w3_EDF, silu)[0]
    return _sum(y_ND, index_N, order_N, start_T1)


def gpu_experts(
    x_ND: Tensor, count_E: Tensor | None, w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, silu: bool = False
) -> Tensor:
    """As `imp_ds.moe.kernels.compute.experts_forward`."""
    return _experts(x_ND.contiguous(), None, _ends(count_E), w1_EDF, w2_EFD, w3_EDF, silu)[0]


def gpu_take(x_TD: Tensor, index_N: Tensor) -> Tensor:
    """x[index]: [N, D]; its gradient is a sum in a fixed order."""
    return _take(x_TD.contiguous(), index_N, *_inverse(index_N, len(x_TD)))


def gpu_sum(y_ND: Tensor, index_N: Tensor, tokens: int) -> Tensor:
    """For each token the sum of its rows, [T, D]."""
    return _sum(y_ND.contiguous(), index_N, *_inverse(index_N, tokens))


def _ends(count_E: Tensor | None) -> Tensor | None:
    """Where each expert's rows end, as grouped products want it."""
    return None if count_E is None else count_E.cumsum(0, dtype=torch.int32)


@torch.library.custom_op("imp_ds::inverse_rows", mutates_args=())
def _inverse(index_N: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows in the order of their tokens [N], and the place where each token's begin [T + 1]: int64."""
    token_N, order_N = index_N.to(torch.int32).sort(stable=True)  # half as many bits to sort by
    edge_T1 = torch.arange(tokens + 1, device=index_N.device, dtype=torch.int32)
    return order_N, torch.searchsorted(token_N, edge_T1)


@_inverse.register_fake
def _(index_N, tokens):
    return index_N.new_empty(len(index_N)), index_N.new_empty(tokens + 1)


@torch.library.custom_op("imp_ds::take_rows", mutates_args=())
def _take(x_TD: Tensor, index_N: Tensor, order_N: Tensor, start_T1: Tensor) -> Tensor:
    return triton_kernels.take_rows(x_TD, index_N)


@torch.library.custom_op("imp_ds::sum_rows", mutates_args=())
def _sum(y_ND: Tensor, index_N: Tensor, order_N: Tensor, start_T1: Tensor) -> Tensor:
    return triton_kernels.sum_rows(y_ND, order_N, start_T1)


@_take.register_fake
def _(x_TD, index_N, order_N, start_T1):
    return x_TD.new_empty(len(index_N), x_TD.shape[1])


@_sum.register_fake
def _(y_ND, index_N, order_N, start_T1):
    return y_ND.new_empty(len(start_T1) - 1, y_ND.shape[1])


def _save_places(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


# each is the other's gradient
_take.register_autograd(
    lambda ctx, grad: (_sum(grad.contiguous(), *ctx.saved_tensors), None, None, None), setup_context=_save_places
)
_sum.register_autograd(
    lambda ctx, grad: (_take(grad.contiguous(), *ctx.saved_tensors), None, None, None), setup_context=_save_places
)


@torch.library.custom_op("imp_ds::gpu_experts", mutates_args=())
def _experts(
    x_ND: Tensor, weight_N: Tensor | None, ends_E: Tensor | None,
    w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, silu: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The answers, and for the backward what enters the activation, what leaves it, and the gate, [N, F]; no gate: empty."""
    h_NF = _product(x_ND, w1_EDF, ends_E)
    gate_NF = None if w3_EDF is None else _product(x_ND, w3_EDF, ends_E)
    act_NF = triton_kernels.activate(h_NF, gate_NF, weight_N, silu)
    return _product(act_NF, w2_EFD, ends_E), h_NF, act_NF, x_ND.new_empty(0) if gate_NF is None else gate_NF


@torch.library.custom_op("imp_ds::gpu_experts_backward", mutates_args=())
def _experts_backward(
    grad_ND: Tensor, x_ND: Tensor, weight_N: Tensor | None, ends_E: Tensor | None, h_NF: Tensor,
    act_NF: Tensor, gate_NF: Tensor, w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, silu: bool = False,
    trained: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, the rows' weights, w1, w2 and w3; empty for what is not there, and for experts that are not `trained`."""
    dact_NF = _product(grad_ND, w2_EFD.transpose(1, 2), ends_E)
    gate = None if w3_EDF is None else gate_NF
    dh_NF, dgate_NF, dweight_N = triton_kernels.activate_backward(dact_NF, h_NF, gate, weight_N, silu)
    dw1_EDF, dw2_EFD, dw3_EDF = (x_ND.new_empty(0) for _ in range(3))
    if trained:
        dw2_EFD = _weight_gradient(act_NF, grad_ND, ends_E, w2_EFD)
        dw1_EDF = _weight_gradient(x_ND, dh_NF, ends_E, w1_EDF)
    dx_ND = _product(dh_NF, w1_EDF.transpose(1, 2), ends_E)
    if w3_EDF is not None:
        dw3_EDF = _weight_gradient(x_ND, dgate_NF, ends_E, w3_EDF) if trained else dw3_EDF
        dx_ND += _product(dgate_NF, w3_EDF.transpose(1, 2), ends_E)
    return dx_ND, x_ND.new_empty(0) if dweight_N is None else dweight_N, dw1_EDF, dw2_EFD, dw3_EDF


@_experts.register_fake
def _(x_ND, weight_N, ends_E, w1_EDF, w2_EFD, w3_EDF, silu=False):
    h_NF = x_ND.new_empty(len(x_ND), w1_EDF.shape[2])
    gate_NF = x_ND.new_empty(0) if w3_EDF is None else torch.empty_like(h_NF)
    return torch.empty_like(x_ND), h_NF, torch.empty_like(h_NF), gate_NF


@_experts_backward.register_fake
def _(grad_ND, x_ND, weight_N, ends_E, h_NF, act_NF, gate_NF, w1_EDF, w2_EFD, w3_EDF, silu=False, trained=True):
    dweight_N = x_ND.new_empty(0) if weight_N is None else torch.empty_like(weight_N)
    wanted = [weight if trained else None for weight in (w1_EDF, w2_EFD, w3_EDF)]
    return torch.empty_like(x_ND), dweight_N, *(x_ND.new_empty(0 if weight is None else weight.shape) for weight in wanted)


def _save(ctx, inputs, output) -> None:
    x_ND, weight_N, ends_E, *weights, ctx.silu = inputs
    ctx.set_materialize_grads(False)  # what is only kept has no gradient: do not make one of zeros
    ctx.save_for_backward(x_ND, weight_N, ends_E, *output[1:], *weights)


def _differentiate(ctx, grad_ND, *_):
    if grad_ND is None:  # the result went nowhere
        return (None,) * 7
    trained = any(ctx.needs_input_grad[3:6])
    dx_ND, dweight_N, *of_weights = _experts_backward(grad_ND.contiguous(), *ctx.saved_tensors, ctx.silu, trained)
    _, weight_N, *_, w1_EDF, w2_EFD, w3_EDF = ctx.saved_tensors
    of_weights = [None if weight is None or not trained else dw for weight, dw in zip((w1_EDF, w2_EFD, w3_EDF), of_weights)]
    return dx_ND, None if weight_N is None else dweight_N, None, *of_weights, None


_experts.register_autograd(_differentiate, setup_context=_save)


def _product(x_NK: Tensor, w_EKM: Tensor, ends_E: Tensor | None) -> Tensor:
    """Each row times its expert's matrix: [N, M]."""
    experts, in_features, out_features = w_EKM.shape
    if not len(x_NK):  # a rank whose experts got no row
        return x_NK.new_empty(0, out_features)
    if ends_E is None:
        return torch.bmm(x_NK.view(experts, -1, in_features), w_EKM).view(-1, out_features)
    return F.grouped_mm(x_NK, w_EKM, offs=ends_E)


def _weight_gradient(x_NK: Tensor, grad_NM: Tensor, ends_E: Tensor | None, like_EKM: Tensor) -> Tensor:
    """x^T grad over the rows of each expert: [E, K, M]; zeros for an expert without rows."""
    if not len(x_NK):
        return torch.zeros(like_EKM.shape, dtype=like_EKM.dtype, device=like_EKM.device)
    if ends_E is None:
        x_EKC = x_NK.view(len(like_EKM), -1, x_NK.shape[1]).transpose(1, 2)
        return torch.bmm(x_EKC, grad_NM.view(len(like_EKM), -1, grad_NM.shape[1]))
    return F.grouped_mm(x_NK.t(), grad_NM, offs=ends_E)
