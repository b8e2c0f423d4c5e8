"""Which layers of a model have experts, as settings say it."""

from imp_ds.errors import UserError


def placed_layers(where: str | list[int], layers: int) -> list[int]:
    """The layer indices that `moe_layers` means in a model of that many layers. Raises UserError when it means none."""
    if isinstance(where, str):
        kind, _, count = where.partition(":")
        if where in ("all", "four"):
            return list(range(0, layers, 1 if where == "all" else 4))
        if kind not in ("first", "last", "every") or not count.isdigit() or not 1 <= int(count) <= layers:
            raise UserError(
                "moe_layers names no layers", got=where,
                allowed=f'"all", "four", "first:N", "last:N", "every:N" with N in 1..{layers}, or a list of indices in '
                f"0..{layers - 1}",
            )  # fmt: skip
        number = int(count)
        spans = {"first": range(number), "last": range(layers - number, layers), "every": range(number - 1, layers, number)}
        return list(spans[kind])
    wrong = [i for i in where if not 0 <= i < layers]
    if wrong or not where:
        raise UserError("moe_layers names unknown layers", got=where, allowed=f"indices in 0..{layers - 1}")
    return sorted(set(where))
