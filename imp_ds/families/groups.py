"""Routing groups, which must be the same on any number of ranks."""

import math
from collections.abc import Iterable

from imp_ds.errors import UserError
from imp_ds.moe.grouping import examples_per_group
from imp_ds.tasks import Task


def check_groups(
    tokens: Iterable[tuple[Task, dict[str, int]]], world_size: int, group_tokens: int, group_examples: int | None
) -> None:
    """Tokens compete inside the same groups as on one rank with the whole batch, so that ranks do not change the results.

    tokens: of each task the lengths of what it has encoded, by name. Raises UserError where groups would be others.
    """
    for task, lengths in tokens:
        here = task.batch_size // (world_size * task.micro_batches)
        for name, length in lengths.items():
            full, part = (examples_per_group(n, length, group_tokens, group_examples) for n in (task.batch_size, here))
            if full != part:
                most = math.gcd(full, part)
                raise UserError(
                    f"task {task.name}: the routing groups of {name} would not be those of one rank",
                    got=f"groups of {part} among {here} samples of a rank at a time, of {full} among all {task.batch_size}",
                    allowed="groups that each rank holds completely",
                    fix=f"--set model.group_examples={most}, or another batch_size, fewer micro-batches or fewer ranks",
                )  # fmt: skip
