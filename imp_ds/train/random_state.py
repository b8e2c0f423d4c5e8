"""The state of this rank's random generators, for modules that draw from them (nn.Dropout, masks of other libraries' models).

The trainer's own dropout and noise have no state (`imp_ds.randomness`). Shapes: N bytes or words of a generator's state.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from imp_ds.parallel.groups import rank

_NONE = float("nan")  # no second normal number is waiting


def capture(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators of torch on the CPU and on `device`, of Python and of numpy, each as one tensor [N]."""
    _, words, waiting = random.getstate()
    _, key, position, has_second, second = np.random.get_state()
    python = [*words, _NONE if waiting is None else waiting]
    numpy = [*key.tolist(), position, has_second, second]
    found = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    # words of 32 bits are exact in float64
    return {name: torch.tensor(state, dtype=torch.float64) for name, state in (("python", python), ("numpy", numpy))} | found


def restore(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set the generators to what `capture` gave on a device of the same kind."""
    *words, waiting = state["python"].tolist()
    random.setstate((3, tuple(map(int, words)), None if waiting != waiting else waiting))
    *key, position, has_second, second = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), int(position), int(has_second), second))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the generators go on afterwards as if it had not been."""
    before = capture(device)
    try:
        yield
    finally:
        restore(before, device)


def start(state: dict[str, torch.Tensor] | None, seed: int, step: int, device: torch.device) -> None:
    """Go on from a checkpoint's `state` of this rank; None: from one that depends on the run's seed, the step and the rank."""
    if state is not None:
        restore(state, device)
        return
    digest = hashlib.blake2b(f"{seed}/{step}/{rank()}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)  # of every device
