"""The exponential moving average of the trained weights (EMA), in float32.

After each step that was taken, average <- d average + (1 - d) weight, with d = min(decay, (1 + n) / (10 + n)) after n steps: an
average that begins with a young model forgets it soon. A rank keeps the average of what its optimizer holds, so nothing is
exchanged, and a checkpoint has it as one more of the optimizer's states (`imp_ds.train.engine.master_state`). What is not trained
has no average; persistent buffers have none either.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imp_ds.train.engine import master_state


class WeightAverage:
    """The average of an engine's weights; it begins as they are.

    held: of each parameter of which this rank holds a part, the average of this part, float32, flat.
    steps: how many updates it has had, which is how many steps the optimizer has taken.
    """

    def __init__(self, engine, decay: float):
        self.decay, self.steps, self._engine = decay, 0, engine
        held = {piece.name: piece.tensors[master_state.WEIGHT] for piece in master_state.slices(engine)}
        self._weights = list(held.values())  # views of the optimizer's memory, which stays where it is
        self.held = {name: weight.clone() for name, weight in held.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after one more step. No exchange between ranks."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        if self._weights:
            torch._foreach_lerp_(list(self.held.values()), self._weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the engine's model computes with the average; after it with its weights as they were, to the bit. All ranks
        enter and leave it together."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weight in zip(self.held.values(), self._weights):
            own = weight.clone()
            weight.copy_(average)
            average.copy_(own)
        master_state.refresh_weights(self._engine)
