"""Logistic regression on frozen features by scikit-learn: with the strength of its penalty chosen on held-out training rows
(DINOv2, Oquab et al., 2023; release, `dinov2/eval/log_regression.py`), or given (CLIP, Radford et al., 2021; its README).

Shapes: N training rows, M test rows, D width.
"""

import warnings

import numpy as np
import torch

from imp_ds.errors import UserError

GRID = 10.0 ** np.linspace(-6, 5, 45)  # values of C, the inverse of the penalty's strength
_HELD_OUT = 10  # one in so many training rows chooses C
LEAST_ROWS = 2 * _HELD_OUT


def chosen_c_predictions(
    train_ND: torch.Tensor, label_N: torch.Tensor, test_MD: torch.Tensor, grid=GRID
) -> tuple[torch.Tensor, float]:
    """The predicted classes, int64 [M], and C: that of `grid` which is best on a tenth of the training rows, drawn by
    seed 0 (the smallest among equals); then all training rows are fitted by it.

    Raises UserError where there are fewer than 20 training rows, or the rest of them has a single class.
    """
    train_ND, label_N, test_MD = _arrays(train_ND, label_N, test_MD)
    order_N = torch.randperm(len(train_ND), generator=torch.Generator().manual_seed(0)).numpy()
    held, rest = order_N[: len(train_ND) // _HELD_OUT], order_N[len(train_ND) // _HELD_OUT :]
    if len(train_ND) < LEAST_ROWS or len(np.unique(label_N[rest])) < 2:
        raise UserError(
            "logistic regression has too little to choose its penalty on", got=f"{len(train_ND)} training rows",
            allowed=f"{LEAST_ROWS} or more, of two classes at least", fix="more samples, or the method clip",
        )  # fmt: skip
    settings = dict(max_iter=1000, tol=1e-12)
    right = [
        (_fitted(train_ND[rest], label_N[rest], C=c, **settings).predict(train_ND[held]) == label_N[held]).mean() for c in grid
    ]
    c = float(grid[int(np.argmax(right))])
    return torch.from_numpy(_fitted(train_ND, label_N, C=c, **settings).predict(test_MD)), c


def given_c_predictions(train_ND: torch.Tensor, label_N: torch.Tensor, test_MD: torch.Tensor, c: float = 0.316) -> torch.Tensor:
    """The predicted classes, int64 [M], by L-BFGS with the published C. Raises UserError for training rows of a single class."""
    train_ND, label_N, test_MD = _arrays(train_ND, label_N, test_MD)
    if len(np.unique(label_N)) < 2:
        raise UserError("logistic regression tells classes apart", got="training rows of a single class", allowed="two or more")
    return torch.from_numpy(_fitted(train_ND, label_N, C=c, random_state=0, max_iter=1000).predict(test_MD))


def _arrays(train_ND: torch.Tensor, label_N: torch.Tensor, test_MD: torch.Tensor) -> tuple[np.ndarray, ...]:
    return train_ND.double().cpu().numpy(), label_N.cpu().numpy(), test_MD.double().cpu().numpy()


def _fitted(x_ND: np.ndarray, label_N: np.ndarray, **settings):
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError("logistic regression needs scikit-learn", got=error, fix="pip install scikit-learn") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # large C may need more than the published 1,000 steps
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # of one sample each: meant so
        return LogisticRegression(**settings).fit(x_ND, label_N)
