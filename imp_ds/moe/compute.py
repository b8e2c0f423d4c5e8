"""A mixture of experts' arithmetic, once it is decided who computes what: gather, feed-forwards, weighted sum.

The only place that chooses by device: the CPU has a pass over the experts of its own (cpu_experts.py), every other device
batched products when all experts have equally many rows, grouped ones when they have not.

Shapes: T flat tokens, N rows in the order of their experts, E experts held here, C = N / E, D width, F feed-forward width.
`count` is the number of rows of each expert, or None when all have N / E of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from imp_ds.moe.cpu_experts import cpu_experts


def mixture(
    x_TD: Tensor,
    token_index_N: Tensor,
    weight_N: Tensor,
    count: list[int] | None,
    w1_EDF: Tensor,
    w2_EFD: Tensor,
    w3_EDF: Tensor | None = None,
) -> Tensor:
    """y [T, D] in the type of x: for each token the sum, over its rows, of weight times the row's expert's answer.

    Args:
        token_index_N: the token of each row; a token may have many rows, or none (then its answer is zero).
        weight_N: the row's weight. Zero means an empty slot, which gives nothing and gets no gradient.
    """
    y_ND = experts_forward(x_TD.index_select(0, token_index_N), count, w1_EDF, w2_EFD, w3_EDF)
    weight_N = weight_N.to(y_ND.dtype)
    weight_N = torch.where(weight_N == 0, weight_N.detach(), weight_N)
    return torch.zeros_like(x_TD).index_add(0, token_index_N, y_ND * weight_N.unsqueeze(1))


def experts_forward(
    x_ND: Tensor, count: list[int] | None, w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None = None
) -> Tensor:
    """The feed-forward of its expert on each row, [N, D] -> [N, D], in the type of x whatever the weights' type is.

    gelu(x w1) w2, or with three matrices (gelu(x w1) * x w3) w2, with the tanh form of gelu. Experts without rows get
    gradients of zeros.
    """
    experts = w1_EDF.shape[0]
    assert sum(count) == len(x_ND) if count is not None else len(x_ND) % experts == 0, "rows and counts disagree"
    w1_EDF, w2_EFD = w1_EDF.to(x_ND.dtype), w2_EFD.to(x_ND.dtype)
    w3_EDF = None if w3_EDF is None else w3_EDF.to(x_ND.dtype)
    if x_ND.device.type == "cpu":
        return cpu_experts(x_ND, count or [len(x_ND) // experts] * experts, w1_EDF, w2_EFD, w3_EDF)
    return stacked_experts(x_ND, count, w1_EDF, w2_EFD, w3_EDF)


def stacked_experts(x_ND: Tensor, count: list[int] | None, w1_EDF: Tensor, w2_EFD: Tensor, w3_EDF: Tensor | None) -> Tensor:
    """The same on any device, differentiated by autograd: no loop over experts."""
    if count is None:
        rows = x_ND.view(w1_EDF.shape[0], -1, x_ND.shape[1])
        product = torch.bmm
    else:
        rows = x_ND
        ends_E = torch.tensor(count, device=x_ND.device).cumsum(0, dtype=torch.int32)

        def product(rows, weight):
            return F.grouped_mm(rows, weight, offs=ends_E)

    hidden = F.gelu(product(rows, w1_EDF), approximate="tanh")
    if w3_EDF is not None:
        hidden = hidden * product(rows, w3_EDF)
    return product(hidden, w2_EFD).reshape(x_ND.shape)
