"""Random numbers without a generator: pure functions of a key and a place, the same however a batch is spread or cut.

Each sample of a global batch has a key. What is random about the sample inside the model (dropout, the noise of a router) is a
function of that key, the site in the model and the element, so that it depends neither on the number of ranks, nor on
micro-batches, checkpointing or resuming, and there is no state to save. What is random about a whole step (the noise of a gate
that asks for nothing but the task) is a function of the step's key in the same way, which every sample's key knows.

A key is the state of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators", figure 17),
whose outputs can be computed in any order: element i of what is drawn from a key is the output i steps after it, and the keys
that are derived from it are outputs of the steps before it. So a key may be both drawn from and derived from.

Integers wrap around at 64 bits, alike on every device and under torch.compile; bits and uniform numbers are equal everywhere,
normal ones to rounding.

Shapes: B samples, N elements of a sample.
"""

import math
from functools import lru_cache

import torch

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the generator's constants
_SAMPLE = 24  # bits of a sample's place in its batch
_FRACTION = 24  # bits that a float32 below 1 holds exactly


def sample_keys(seed: int, step: int, first: int, count: int) -> torch.Tensor:
    """The keys of samples first .. first+count-1 of the global batch of a step: int64 [count]; samples beyond 2^24 of a batch
    would have the next step's.

    All keys of a step differ in the lower 24 bits alone, so that any of them shows which step it is of (`step_key`).
    """
    first += _signed((_run_key(seed) + step) << _SAMPLE)
    return torch.arange(first, first + count)


@lru_cache(maxsize=16)
def _run_key(seed: int) -> int:
    return int(derive(torch.tensor([_signed(seed)]), 0))


def additional_keys(key_B: torch.Tensor, number: int, first: int, count: int) -> torch.Tensor:
    """The keys of things first .. first+count-1 that belong to the step of these samples, beside them, such as its candidates:
    int64 [count], the same on every rank; they know a step of their own. `number` distinguishes kinds of things, from 16 on."""
    return (derive(step_key(key_B), number) << _SAMPLE) + torch.arange(first, first + count, device=key_B.device)


def step_key(key_B: torch.Tensor) -> torch.Tensor:
    """The key of the step that samples belong to: int64 [1]. It is the same for each of them, on whichever rank, in whichever
    micro-batch."""
    return key_B[:1] >> _SAMPLE


def derive(key_B: torch.Tensor, number: int | torch.Tensor) -> torch.Tensor:
    """For each key another one of its own: int64 [B]. `number` (0 or more) distinguishes the derived keys: a modality, a layer;
    a tensor of numbers is broadcast with the keys."""
    before = _signed((number + 1) * _STEP) if isinstance(number, int) else (number + 1) * _signed(_STEP)
    return _mix(key_B - before)


def uniform(key_B: torch.Tensor, *shape: int) -> torch.Tensor:
    """Uniform in [0, 1), multiples of 2^-24: float32 [B, *shape]."""
    return _fraction(_shift(_bits(key_B, shape), 64 - _FRACTION))


def normal(key_B: torch.Tensor, *shape: int) -> torch.Tensor:
    """Standard normal, by Box and Muller: float32 [B, *shape], none beyond sqrt(48 ln 2) = 5.8."""
    bits = _bits(key_B, shape)
    radius = (-2.0 * (1.0 - _fraction(_shift(bits, 64 - _FRACTION))).log()).sqrt()
    return radius * (2.0 * math.pi * _fraction(bits & ((1 << _FRACTION) - 1))).cos()


def dropout(x_BLD: torch.Tensor, rate: float, key_B: torch.Tensor | None) -> torch.Tensor:
    """x [B, ...] with a share `rate` of its elements zero and the others divided by 1 - rate. Without a key or a rate: x."""
    if key_B is None or not rate:
        return x_BLD
    dropped_BLD = uniform(key_B, *x_BLD.shape[1:]) < rate
    return (x_BLD * (1.0 / (1.0 - rate))).masked_fill(dropped_BLD, 0.0)


def _bits(key_B: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """64 random bits for each element: int64 [B, *shape]."""
    index_N = torch.arange(1, math.prod(shape) + 1, device=key_B.device)
    # A constant that torch.compile cannot know: it would work out the product of an index and a known one as an integer
    # without end, where this one wraps around.
    step = (key_B.sum() & 0) + _signed(_STEP)
    return _mix(key_B[:, None] + index_N.mul_(step)).view(-1, *shape)


def _mix(state: torch.Tensor) -> torch.Tensor:
    """The generator's output for a state, in its place: these are the largest tensors here, and each new one takes as long as
    the arithmetic."""
    state.bitwise_xor_(_shift(state, 30)).mul_(_signed(_FIRST))
    state.bitwise_xor_(_shift(state, 27)).mul_(_signed(_SECOND))
    return state.bitwise_xor_(_shift(state, 31))


def _shift(bits: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right; torch's own repeats the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _fraction(bits: torch.Tensor) -> torch.Tensor:
    return bits.float().mul_(2.0**-_FRACTION)


def _signed(number: int) -> int:
    """The 64-bit integer of the same bits, as torch has them."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
