"""Linear regression in closed form, as V-MoE and big_vision have it (Riquelme et al., 2021, arXiv 2106.05974, appendix; release,
`big_vision/evaluators/fewshot_lsr.py`): cheap enough to run while a model trains.

Shapes: N training rows, M test rows, D width, C classes.
"""

import torch
import torch.nn.functional as F

_BIAS = 100.0  # the constant feature: so large that the penalty hardly reaches its weight
_LEAST_DEVIATION = 1e-5


def least_squares_predictions(
    train_ND: torch.Tensor, label_N: torch.Tensor, test_MD: torch.Tensor, l2: float = 1024.0
) -> torch.Tensor:
    """The predicted classes, int64 [M], of the regression of +1 for a row's class and -1 for the others on features that have
    the training rows' mean and deviation taken out; `l2` is the penalty on the squared weights. In float64."""
    x_ND, classes = train_ND.double(), int(label_N.max()) + 1
    mean_D, deviation_D = x_ND.mean(0), x_ND.std(0, correction=0) + _LEAST_DEVIATION
    x_ND = F.pad((x_ND - mean_D) / deviation_D, (0, 1), value=_BIAS)
    target_NC = 2.0 * F.one_hot(label_N, classes).double() - 1.0
    few = len(x_ND) < x_ND.shape[1]  # then the smaller system is that of the rows: x^T (x x^T + l2)^-1 y
    eigenvalues, q = torch.linalg.eigh(x_ND @ x_ND.T if few else x_ND.T @ x_ND)
    right = q.T @ (target_NC if few else x_ND.T @ target_NC)
    solved = q @ (right / (eigenvalues + l2)[:, None])
    weight_DC = x_ND.T @ solved if few else solved
    test_MD = F.pad((test_MD.double() - mean_D) / deviation_D, (0, 1), value=_BIAS)
    return (test_MD @ weight_DC).argmax(1)
