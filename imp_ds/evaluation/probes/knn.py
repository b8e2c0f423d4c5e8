"""The vote of the k nearest neighbours, as DINOv2 has it (Oquab et al., 2023, arXiv 2304.07193; release, `dinov2/eval/knn.py`).

Shapes: N training rows, M test rows, D width, K neighbours, C classes.
"""

import torch
import torch.nn.functional as F

_CHUNK_SCORES = 1 << 24


def knn_predictions(
    train_ND: torch.Tensor, label_N: torch.Tensor, test_MD: torch.Tensor, neighbours: list[int], temperature: float = 0.07
) -> dict[int, torch.Tensor]:
    """The predicted classes, int64 [M], for each number of neighbours; numbers above N are left out; where all are, N is taken.

    Features are made unit vectors. The neighbours of a test row are weighted by the softmax of cosine / temperature over the
    most of `neighbours`, and the first k of them vote. In float64.
    """
    ks = sorted({k for k in neighbours if k <= len(train_ND)} or {len(train_ND)})
    train_ND, classes = F.normalize(train_ND.double(), dim=-1), int(label_N.max()) + 1
    found = {k: [] for k in ks}
    for part_BD in test_MD.split(max(1, _CHUNK_SCORES // len(train_ND))):
        cosine_BK, row_BK = (F.normalize(part_BD.double(), dim=-1) @ train_ND.T).topk(ks[-1], dim=1)
        weight_BK = (cosine_BK / temperature).softmax(1)
        for k in ks:
            votes_BC = weight_BK.new_zeros(len(part_BD), classes)
            votes_BC.scatter_add_(1, label_N[row_BK[:, :k]], weight_BK[:, :k])
            found[k].append(votes_BC.argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}
