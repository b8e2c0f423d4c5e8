"""Memory of a rank: exact for weights, gradients and optimizer states under DeepSpeed's ZeRO stages, counted for activations.

DeepSpeed 0.19.8 gathers gradients for reduction in buffers of reduce_bucket_size values from ZeRO 1 on: as shipped for GPUs two
of 25 M where communication overlaps (ZeRO 1 and 2), else one of 500 M. A GPU allocates them in full; on a CPU only what is
written takes memory. ZeRO 3 also gathers weights: up to stage3_max_live_parameters = 1,000 M stay unsharded through forward and
backward.

Shapes: b samples of a rank, L tokens of a sample, T = b * L, D width, F feed-forward width, P values of a patch, V words of the
vocabulary.
"""

from dataclasses import dataclass

# bytes of a parameter: weights, gradients, optimizer. bf16: gradients accumulate in float32; DeepSpeed keeps a float32 master
# copy of what a rank updates, in float32 training too, and AdamW two moments
PRECISIONS = {"bf16": (2, 4, 12), "float32": (4, 4, 12)}
BUCKET, OVERLAPPING, LIVE = 500_000_000, 2 * 25_000_000, 1_000_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank under one ZeRO stage."""

    stage: int
    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations


def memory_of_rank(
    rest: int, experts: int, stage: int, world: int, ep_size: int, precision: str, activations: float,
    trained: tuple[int, int] | None = None, average: bool = False,
) -> Memory:  # fmt: skip
    """Bytes of one rank, from all parameters that are no experts and all that are. ZeRO 1 shares the optimizer's states among
    replicas, 2 also gradients, 3 also weights; what is not an expert has `world` replicas, an expert world / ep_size. float32
    stands for training on a CPU, bf16 on a GPU, as the shipped configurations have it.

    trained: how many of both have gradients and states; None: all. average: whether one of the weights is kept too.
    """

    def held(rest: int, experts: int) -> tuple[float, float]:
        """Of so many parameters those of a rank: unsharded, and its share of them."""
        own = experts / ep_size
        return rest + own, rest / world + own / (world / ep_size)

    full, shared = held(rest, experts)
    trained_full, trained_shared = held(*((rest, experts) if trained is None else trained))
    weights, gradients, optimizer = PRECISIONS[precision]
    optimizer += 4 * average
    if precision == "float32":
        bucket = min(BUCKET, trained_full)
    else:
        bucket = BUCKET if stage == 3 else OVERLAPPING
    gathered = min(LIVE, full) if stage == 3 else 0
    return Memory(
        stage,
        weights * (shared if stage >= 3 else full),
        gradients * (trained_shared if stage >= 2 else trained_full),
        optimizer * (trained_shared if stage >= 1 else trained_full),
        (bucket + gathered) * weights if stage >= 1 else 0.0,
        activations,
    )
