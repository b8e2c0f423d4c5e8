"""Steps that would harm the weights are not taken (as OLMo-core's `optim/skip_step_optimizer.py` and PaLM, arXiv 2204.02311,
section 5.1).

A loss or a gradient norm that is not finite, or that lies more than so many deviations above the mean of the last 128 of the
same task (a spike), skips its step. What was skipped is remembered like the rest, so that a level that has really changed is
accepted after a few steps. Every rank sees the same numbers and so decides the same.
"""

import math
from collections import deque

WINDOW = 128
MIXTURE = "*"  # in place of a task, where ranks train several in one step; no task has this name
LEAST = 64  # below so many values the deviation shows little, and everything finite is accepted


class Guard:
    """Judges losses and gradient norms, task by task.

    deviations: how far above the mean a value may lie; 0 accepts everything finite.
    """

    def __init__(self, deviations: float, state: dict[str, list[float]] | None = None):
        self.deviations = deviations
        self.windows = {key: deque(values, WINDOW) for key, values in (state or {}).items()}

    def anomaly(self, task: str, what: str, value: float) -> str | None:
        """The anomaly for which the step of `task` is skipped, in words, or None; remembers the value.

        task: or MIXTURE. what: "loss" or "gradient norm".
        """
        if not math.isfinite(value):
            return f"the {what} is not finite"
        window = self.windows.setdefault(f"{task}/{what}", deque(maxlen=WINDOW))
        found = None
        if self.deviations and len(window) >= LEAST:
            mean = math.fsum(window) / len(window)
            deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in window) / len(window))
            # values that never varied do not show how much they may
            if deviation > 0 and value > mean + self.deviations * deviation:
                found = f"the {what} {value:.4g} is {(value - mean) / deviation:.1f} deviations above its mean {mean:.4g}"
        window.append(value)
        return found

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps of it."""
        return {key: list(window) for key, window in self.windows.items()}
