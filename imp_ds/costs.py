"""What a step costs, given by those that know a part of it: kernels with their products and traffic, and sequences.

Traffic is counted in passes over a tensor, read or written, as an eager run without fusion makes them.
"""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

FLOAT32 = 4
STATES, VECTORS = ("states",), ("vectors",)
_OF_EXPERTS = re.compile(r"(^|\.)experts\.(lora\.)?w\d?(\.[AB])?$")


def is_of_experts(name: str) -> bool:
    """Whether a parameter of that name is a stack of experts' weights, or of low-rank changes of them, as layers of `imp_ds.moe`
    call them."""
    return _OF_EXPERTS.search(name) is not None


@dataclass(frozen=True)
class Kernel:
    """All kernels of one kind and shape in a step of one rank, forward and backward together.

    kind: "product", "experts" (products batched by expert), "attention", "routing", "norm", "gelu" or "copy" (any other pass
    over a tensor); width: the narrow side of a product, 0 for others; flops: of products; bytes: read and written;
    calls: how often it is started, a forward with its backward being one; in_block: run again under gradient checkpointing;
    forward: the share of it that the forward is, which is what is run again; of: prefixes, in a block, of what it computes with;
    in an objective STATES where it computes with what the encoder gives, VECTORS where it has no weights.
    """

    kind: str
    width: int
    flops: float
    bytes: float
    calls: int
    in_block: bool = False
    forward: float = 1 / 3
    of: tuple[str, ...] = ()


def product(
    rows: int, in_features: int, out_features: int, size: int, *, input_gradient: bool = True, in_block: bool = False,
    of: tuple[str, ...] = (),
) -> Kernel:  # fmt: skip
    """A linear layer of `rows` rows: each of its products reads two matrices and writes the third."""
    times = 3 if input_gradient else 2
    flops, moved = 2 * rows * in_features * out_features, rows * in_features + in_features * out_features + rows * out_features
    return Kernel("product", min(in_features, out_features), times * flops, times * moved * size, 1, in_block, 1 / times, of)


def passes(kind: str, values: float, calls: int, *, in_block: bool = False, of: tuple[str, ...] = ()) -> Kernel:
    """`values` bytes in all, over `calls` kernels."""
    return Kernel(kind, 0, 0.0, values, calls, in_block, of=of)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters. `encoder` is the blocks and the final norm; `experts` the part of it that experts hold;
    `active` what of the encoder one token meets on average; `rest` is embeddings, projections, heads and temperatures."""

    encoder: int
    experts: int
    active: int
    rest: int
    one_expert: int

    @property
    def total(self) -> int:
        return self.encoder + self.rest


class Exchange(NamedTuple):
    """Collectives of one kind that a step makes inside a group of ranks: `size` bytes in all, over `calls` calls."""

    operation: str
    size: float
    calls: int


class Sequences(NamedTuple):
    """`count` sequences of one shape: (modality, tokens) of each segment.

    split: "samples", which ranks and micro-batches share out; "ranks", candidates that ranks alone share out; "none", what each
        rank encodes whole.
    """

    count: int
    segments: tuple[tuple[str, int], ...]
    split: Literal["samples", "ranks", "none"] = "samples"

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return sum(length for _, length in self.segments)

    def of_rank(self, world: int, micro_batches: int = 1) -> int:
        """How many of them one of the ranks encodes at a time."""
        shares = {"samples": world * micro_batches, "ranks": world, "none": 1}[self.split]
        return -(-self.count // shares)
