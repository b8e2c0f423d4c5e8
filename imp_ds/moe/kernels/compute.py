"""A mixture of experts' arithmetic, once it is decided who computes what: gather, feed-forwards, weighted sum.

The only place that chooses by device: the CPU has a pass over the experts of its own (cpu_experts.py), CUDA with Triton its
kernels (gpu_experts.py, and gpu_router.py for the router), everything else, and whatever is exported, plain torch: batched
products when all experts have equally many rows, grouped ones when they have not.

Shapes: T flat tokens, N rows in the order of their experts, E experts held here, C = N / E, D width, F feed-forward width,
I inputs and O outputs of a linear layer.
`count` is the number of rows of each expert as `rows_of_experts` gives it: a list on the CPU, elsewhere a tensor [E] that the
host never reads; None when all have N / E of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from imp_ds.moe.kernels.cpu_experts import cpu_experts, cpu_mixture

try:
    from imp_ds.moe.kernels import gpu_experts, gpu_router
except ImportError:  # Triton comes with the CUDA builds of torch alone
    gpu_experts = gpu_router = None

Count = list[int] | Tensor | None


def rows_of_experts(count_E: Tensor | None) -> Count:
    """How many rows each expert has, where the experts' arithmetic wants to know it: on the host for the CPU, on the device
    elsewhere, so that nobody waits for it."""
    return count_E.tolist() if count_E is not None and count_E.device.type == "cpu" else count_E


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> tuple[Tensor, Tensor]:
    """x weight^T in float32, whatever the types of tokens and weights: [T, E]; and x, for code that computes with the tokens:
    kernels add the gradients of both uses in one pass."""
    weight_ED = weight_ED.float()
    if _has_kernels(x_TD) and x_TD.dtype == torch.bfloat16 and len(weight_ED) <= gpu_router.MOST_EXPERTS:
        return gpu_router.gpu_router_logits(x_TD, weight_ED)
    return F.linear(x_TD.float(), weight_ED), x_TD


def mixture(
    x_TD: Tensor,
    token_index_N: Tensor,
    weight_N: Tensor,
    count: Count,
    w1_EDF: Tensor,
    w2_EFD: Tensor,
    w3_EDF: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """y [T, D] in the type of x: for each token the sum, over its rows, of weight times the row's expert's answer.

    Args:
        token_index_N: the token of each row; a token may have many rows, or none (then its answer is zero).
        weight_N: the row's weight. Zero means an empty slot, which gives nothing and gets no gradient.
    """
    weight_N = _only_filled(weight_N)
    weights = _weights_for(x_TD, token_index_N.shape[0], count, w1_EDF, w2_EFD, w3_EDF)
    if _has_kernels(x_TD):
        return gpu_experts.gpu_mixture(x_TD, token_index_N, weight_N, count, *weights, silu)
    weight_N = weight_N.to(x_TD.dtype)
    if x_TD.device.type == "cpu" and not torch.compiler.is_exporting():
        return cpu_mixture(x_TD, token_index_N, weight_N, _counts(len(token_index_N), count, w1_EDF), *weights, silu)
    return stacked_mixture(x_TD, token_index_N, weight_N, count, *weights, silu)


def experts_forward(
    x_ND: Tensor, count: Count, w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None = None, silu: bool = False
) -> Tensor:
    """The feed-forward of its expert on each row, [N, D] -> [N, D], in the type of x whatever the weights' type is.

    gelu(x w1) w2, or with three matrices (gelu(x w1) * x w3) w2, with the tanh form of gelu; with `silu` that in its place.
    Experts without rows get gradients of zeros.
    """
    weights = _weights_for(x_ND, x_ND.shape[0], count, w1_EDF, w2_EFD, w3_EDF)
    if _has_kernels(x_ND):
        return gpu_experts.gpu_experts(x_ND, count, *weights, silu)
    if x_ND.device.type == "cpu" and not torch.compiler.is_exporting():
        return cpu_experts(x_ND, _counts(len(x_ND), count, w1_EDF), *weights, silu)
    return stacked_experts(x_ND, count, *weights, silu)


def linear_mixture(x_TI: Tensor, token_index_N: Tensor, weight_N: Tensor, count: Count, w_EIO: Tensor) -> Tensor:
    """As `mixture`, [T, I] -> [T, O], where an expert is one linear layer."""
    y_NO = linear_forward(take_rows(x_TI, token_index_N), count, w_EIO)
    return sum_rows(weigh_rows(y_NO, weight_N), token_index_N, x_TI.shape[0])


def linear_forward(x_NI: Tensor, count: Count, w_EIO: Tensor) -> Tensor:
    """Each row times the matrix of its expert, [N, I] -> [N, O], in the type of x. Experts without rows have gradients of 0."""
    (w_EIO,) = _weights_for(x_NI, x_NI.shape[0], count, w_EIO)
    if isinstance(count, list):
        return torch.cat([rows @ w_IO for rows, w_IO in zip(x_NI.split(count), w_EIO.unbind())])
    return stacked_product(x_NI, count, w_EIO)


def weigh_rows(y_NO: Tensor, weight_N: Tensor) -> Tensor:
    """Each row times its weight, [N, O]; a weight of 0, of an empty slot, gets no gradient."""
    return y_NO * _only_filled(weight_N).to(y_NO.dtype).unsqueeze(1)


def activate(h: Tensor, silu: bool) -> Tensor:
    """The activation of a feed-forward: the tanh form of gelu, or silu."""
    return F.silu(h) if silu else F.gelu(h, approximate="tanh")


def _only_filled(weight_N: Tensor) -> Tensor:
    """The weights, of which those that are 0, of empty slots, get no gradient."""
    return torch.where(weight_N == 0, weight_N.detach(), weight_N)


def take_rows(x_TD: Tensor, token_index_N: Tensor) -> Tensor:
    """The token of each row: [N, D]."""
    return gpu_experts.gpu_take(x_TD, token_index_N) if _has_kernels(x_TD) else x_TD.index_select(0, token_index_N)


def sum_rows(y_ND: Tensor, token_index_N: Tensor, tokens: int) -> Tensor:
    """For each of `tokens` tokens the sum of its rows, [T, D]; zeros where it has none."""
    if _has_kernels(y_ND):
        return gpu_experts.gpu_sum(y_ND, token_index_N, tokens)
    return y_ND.new_zeros(tokens, y_ND.shape[1]).index_add(0, token_index_N, y_ND)


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and gpu_experts is not None and not torch.compiler.is_exporting()


def _weights_for(x: Tensor, rows: int, count: Count, *weights: Tensor | None) -> list[Tensor | None]:
    """The weights in the type of x, after a look whether they and the rows belong together."""
    experts = len(weights[0])
    assert rows % experts == 0 if count is None else len(count) == experts, (rows, count)
    assert not isinstance(count, list) or sum(count) == rows, (rows, count)
    return [None if weight is None else weight.to(x.dtype) for weight in weights]


def _counts(rows: int, count: Count, w1_EDF: Tensor) -> list[int]:
    experts = len(w1_EDF)
    return [rows // experts] * experts if count is None else count


def stacked_mixture(
    x_TD: Tensor,
    token_index_N: Tensor,
    weight_N: Tensor,
    count: Count,
    w1_EDF: Tensor,
    w2_EFD: Tensor,
    w3_EDF: Tensor | None,
    silu: bool = False,
) -> Tensor:
    """`mixture` on any device, differentiated by autograd."""
    y_ND = stacked_experts(x_TD.index_select(0, token_index_N), count, w1_EDF, w2_EFD, w3_EDF, silu)
    return torch.zeros_like(x_TD).index_add(0, token_index_N, y_ND * weight_N.unsqueeze(1))


def stacked_experts(
    x_ND: Tensor, count: Count, w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None, silu: bool = False
) -> Tensor:
    """`experts_forward` on any device, differentiated by autograd, without a loop over experts.

    Grouped products want rows and weights whose strides are multiples of 16 bytes: D and F multiples of 8 in bfloat16.
    """
    hidden = activate(stacked_product(x_ND, count, w1_EDF), silu)
    if w3_EDF is not None:
        hidden = hidden * stacked_product(x_ND, count, w3_EDF)
    return stacked_product(hidden, count, w2_EFD)


def stacked_product(x_NI: Tensor, count: Count, w_EIO: Tensor) -> Tensor:
    """Each row times the matrix of its expert, [N, I] -> [N, O], batched or grouped."""
    if count is None:
        return torch.bmm(x_NI.view(len(w_EIO), -1, x_NI.shape[1]), w_EIO).flatten(0, 1)
    if x_NI.is_meta:  # where costs are counted: it has no grouped product of float32, and all rows in one cost as much
        return x_NI @ w_EIO[0]
    if not len(x_NI):  # a rank whose experts got no row: grouped products want rows; the weights have gradients of zeros
        return x_NI @ w_EIO[0]
    ends_E = torch.as_tensor(count, device=x_NI.device).cumsum(0, dtype=torch.int32)
    return F.grouped_mm(x_NI, w_EIO, offs=ends_E)
