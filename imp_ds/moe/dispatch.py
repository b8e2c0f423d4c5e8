"""Where the experts of a layer are, and what that means for the path of a token: here, nothing.

The other dispatcher, for experts that are spread over ranks, is `imp_ds.parallel.expert_parallel`.

Shapes: T flat tokens, D width.
"""

import torch

from imp_ds.moe.experts import Experts
from imp_ds.moe.kernels.compute import rows_of_experts
from imp_ds.moe.routing import Routing


class LocalDispatcher:
    """All experts are here. (x [T, D], routing, experts) -> the weighted sum of every token's answers, [T, D]; zeros for a
    token that no expert took."""

    def __call__(self, x_TD: torch.Tensor, routing: Routing, experts: Experts) -> torch.Tensor:
        keys = {} if routing.key_T is None else {"key": routing.key_T}
        return experts(x_TD, rows_of_experts(routing.count_E), routing.token_index_N, routing.weight_N, **keys)
