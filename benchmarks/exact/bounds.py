"""How far a run may be from its reference, and why.

float32: 1e-4, for losses and weights as they are and for norms and gradients as a share. Layouts differ in the order of sums
alone, which costs some 1e-7 a step.

bfloat16: against one process in bfloat16, losses only. It has 8 bits: what is rounded twice in different ways differs by up to
2^-8. A similarity of unit vectors may differ by that, divided by the temperature (0.2 at first); a loss is a difference of two
of them: 2 * 2^-8 / 0.2 = 0.04. Weights are no measure: Adam's steps are as large for a gradient that is all rounding. Nor can
choices be equal: of two tokens that an expert likes as much as the other, rounding decides; the share of such choices is
reported.
"""

import math
from dataclasses import dataclass

from benchmarks.exact.cases import Case

FLOAT32 = 1e-4
BF16_LOSS = 2 * 2.0**-8 / 0.2


@dataclass(frozen=True)
class Result:
    """One case: `refused`: why it would not start; `found` is what `worker.compare` measured; None: it did not end."""

    case: Case
    refused: str | None
    found: dict[str, float] | None
    seconds: float

    @property
    def passed(self) -> bool:
        if self.refused is not None:
            return True
        if self.found is None:
            return False
        if self.case.bf16:
            return within(self.found["loss"], BF16_LOSS)
        return all(within(value, FLOAT32) for name, value in self.found.items() if name != "choices")

    def shown(self) -> str:
        if self.refused is not None:
            return f"refused: {self.refused.splitlines()[0]}"
        if self.found is None:
            return "did not end"
        numbers = ", ".join(f"{name} {value:.1e}" for name, value in self.found.items())
        return f"{numbers} ({self.seconds:.1f} s){'' if self.passed else ' TOO FAR'}"


def within(value: float, bound: float) -> bool:
    return math.isfinite(value) and value <= bound


def failures(results: list[Result]) -> list[Result]:
    return [result for result in results if not result.passed]
