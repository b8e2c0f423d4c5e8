"""Which tokens compete for experts: in training those of a few whole examples, outside of it those of one.

Shapes: B batch, L tokens of an example, D width.
"""

from dataclasses import dataclass

import torch

from imp_ds.errors import UserError
from imp_ds.moe.routing import Counted, RoutingContext


def examples_per_group(batch: int, length: int, group_tokens: int, group_examples: int | None) -> int:
    """Examples that compete for experts together: the largest divisor of `batch` within both limits.

    Groups hold whole examples, so results do not depend on how a batch is spread over ranks, as long as each rank's
    share is a multiple of the group. Raises UserError when one example is already longer than a group.
    """
    if length > group_tokens:
        raise UserError(
            "an example is longer than a routing group", got=f"{length} tokens", allowed=f"group_tokens = {group_tokens} at most",
            fix="raise group_tokens in the model configuration, or use fewer frames, a smaller size or a higher drop rate",
        )  # fmt: skip
    most = min(group_tokens // length, group_examples or batch, batch)
    return next(n for n in range(most, 0, -1) if batch % n == 0)


@dataclass(frozen=True)
class Grouping:
    """Limits of a group: tokens, and examples (None: no limit)."""

    tokens: int = 2048
    examples: int | None = None

    def context(
        self,
        x_BLD: torch.Tensor,
        valid_BL: torch.Tensor | None,
        key_B: torch.Tensor | None,
        mask_LL: torch.Tensor | None,
        counted: Counted | None = None,
    ) -> RoutingContext:
        """What a router knows of these tokens. counted: each example routes alone, and counts so; None: they share groups."""
        batch, length = x_BLD.shape[:2]
        examples = examples_per_group(batch, length, self.tokens, self.examples) if counted is None else 1
        flat_T = None if valid_BL is None else valid_BL.reshape(-1)
        return RoutingContext(examples * length, flat_T, key_B, length, mask_LL, counted)
