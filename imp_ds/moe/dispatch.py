"""Moving tokens to their experts and back, by index: no one-hot tensors, no host synchronisation.

Shapes: T flat tokens, D width, E experts, C slots of an expert.
"""

import torch

from imp_ds.moe.routing import Routing


class LocalDispatcher:
    """All experts are here: gather the rows, and add the weighted answers back to their tokens."""

    def dispatch(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Rows in slot order, [E, C, D]."""
        experts, slots = routing.token_index_EC.shape
        return x_TD.index_select(0, routing.token_index_EC.reshape(-1)).view(experts, slots, x_TD.shape[1])

    def combine(self, y_ECD: torch.Tensor, routing: Routing, num_tokens: int) -> torch.Tensor:
        """The weighted sum of every token's answers, [T, D]; zeros for a token that no expert took."""
        weighted_ECD = y_ECD * routing.weight_EC.to(y_ECD.dtype).unsqueeze(-1)
        out_TD = y_ECD.new_zeros(num_tokens, y_ECD.shape[-1])
        return out_TD.index_add(0, routing.token_index_EC.reshape(-1), weighted_ECD.flatten(0, 1))
