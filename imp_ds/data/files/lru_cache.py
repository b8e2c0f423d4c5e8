"""A cache of the values that were used last, up to a bound."""

from collections.abc import Callable, Hashable


class LruCache:
    """Values by key; the least recently used go first. A copy in another process starts empty.

    Args:
        most: bound on the costs of all together; the value asked for last is kept whatever it costs.
    """

    def __init__(self, most: float):
        self.most = most
        self._values, self._cost = {}, 0.0

    def __getstate__(self) -> dict:
        return {"most": self.most, "_values": {}, "_cost": 0.0}

    def get(self, key: Hashable, make: Callable, cost: Callable = lambda value: 1):
        """The value of `key`, made by `make()` when it is not kept; `cost(value)` is what it counts for."""
        if key in self._values:
            self._values[key] = self._values.pop(key)  # now the newest
            return self._values[key][0]
        value = make()
        costs = cost(value)
        while self._values and self._cost + costs > self.most:
            self._cost -= self._values.pop(next(iter(self._values)))[1]
        self._values[key] = value, costs
        self._cost += costs
        return value
