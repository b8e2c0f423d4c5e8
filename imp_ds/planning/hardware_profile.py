"""The hardware profile: how fast a machine is, in the few numbers from which the time of a step is predicted, and the file that
keeps them.

Every kind of kernel has a rate: what one start of it costs, what it reads and writes a second, and, for matrix products,
what it computes a second, by the narrow side of the product. `planning.measure` measures them; without a measurement
there are figures for one H200, of which only the products' and the copy's are measured, and the rest are named as assumptions.
"""

import json
import math
from pathlib import Path

from pydantic import Field

from imp_ds.costs import Kernel
from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.overrides import parse_record
from imp_ds.records import Record
from imp_ds.written_files import write_result

KINDS = ("product", "experts", "attention", "routing", "norm", "gelu", "copy")
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


class KernelRate(Record):
    """Of one kind of kernel; `flops_per_s` by the narrow side of the product, one entry at 0 where that does not matter."""

    overhead_s: float = Field(ge=0, description="of one start, forward and backward together")
    bytes_per_s: float = Field(gt=0)
    flops_per_s: dict[int, float] = {}

    def seconds(self, kernel: Kernel) -> float:
        """Roofline: the longer of computing and moving, and the starts."""
        computing = kernel.flops / self.flops_at(kernel.width) if kernel.flops and self.flops_per_s else 0.0
        return kernel.calls * self.overhead_s + max(computing, kernel.bytes / self.bytes_per_s)

    def flops_at(self, width: int) -> float:
        """FLOPs a second at a width: between two measured ones linear in the width's logarithm, beyond them the nearest."""
        known = sorted(self.flops_per_s)
        width = min(max(width, known[0]), known[-1])
        above = next(w for w in known if w >= width)
        if above == width:
            return self.flops_per_s[above]
        below = known[known.index(above) - 1]
        share = math.log(width / below) / math.log(above / below)
        return self.flops_per_s[below] * (1 - share) + self.flops_per_s[above] * share


class EngineRate(Record):
    """What DeepSpeed and the optimizer add to a step under one ZeRO stage, communication left out, in seconds."""

    step_s: float = Field(ge=0, description="of a step")
    tensor_s: float = Field(ge=0, description="of a parameter tensor that had a gradient")
    held_s: float = Field(ge=0, description="of a parameter that the rank holds: buckets, norm")
    owned_s: float = Field(ge=0, description="of a parameter that the rank updates: clipping, AdamW")


class Link(Record):
    """One collective operation: seconds to start it, and bytes a second of one rank's traffic, those of a call's first
    `short_bytes` apart: what the caches hold goes faster, and what fills no network slower."""

    latency_s: float = Field(ge=0)
    bytes_per_s: float = Field(gt=0)
    short_bytes: float = Field(0.0, ge=0)
    short_bytes_per_s: float = Field(1.0, gt=0)

    def moving_s(self, traffic: float) -> float:
        """Seconds that `traffic` bytes of one call are on the way, without its start."""
        short = min(traffic, self.short_bytes)
        return short / self.short_bytes_per_s + (traffic - short) / self.bytes_per_s


class HardwareProfile(Record):
    """The hardware profile of a machine. `ranks` ran at once when they were measured; `links` are those among them."""

    machine: str
    precision: str
    ranks: int = Field(ge=1)
    memory_gib: float = Field(gt=0, description="of the device, for one rank")
    kernels: dict[str, KernelRate]
    engine: dict[int, EngineRate] = Field(description="by ZeRO stage")
    links: dict[str, Link] = {}
    assumed: list[str] = Field([], description="what is no measurement")

    def save(self, path: str | Path) -> None:
        write_result(path, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "HardwareProfile":
        """Read what `save` wrote. Raises UserError for a file that is missing, damaged or incomplete."""
        fix = "measure this machine: imp_ds profile FILE"
        profile = parse_record(cls, read_json(path, dict, fix), str(path))
        missing = sorted(set(KINDS) - set(profile.kernels)) + [f"engine.{s}" for s in range(4) if s not in profile.engine]
        if missing:
            raise UserError("the hardware profile is incomplete", got=f"{path}: no {', '.join(missing)}", fix=fix)
        return profile


def h200() -> HardwareProfile:
    """One H200 in bf16. Measured: 780e12 FLOPs a second in large products, 4.3e12 bytes a second in a copy (benchmark notes of
    the project); all else is assumed, and `assumed` names it."""
    products, copy, start = {0: 780e12}, 4.3e12, 5e-6
    passing = KernelRate(overhead_s=start, bytes_per_s=copy)
    kernels = {kind: passing for kind in KINDS}
    kernels["product"] = KernelRate(overhead_s=3 * start, bytes_per_s=copy, flops_per_s=products)
    kernels["experts"] = KernelRate(overhead_s=6 * start, bytes_per_s=copy, flops_per_s=products)
    kernels["attention"] = KernelRate(overhead_s=2 * start, bytes_per_s=copy, flops_per_s={0: 300e12})
    kernels["routing"] = KernelRate(overhead_s=40 * start, bytes_per_s=copy)
    # a parameter is read and written in several passes: 2 bytes of weight, 4 of gradient, 12 of master and moments
    engine = EngineRate(step_s=1e-3, tensor_s=2e-5, held_s=10 / copy, owned_s=40 / copy)
    return HardwareProfile(
        machine="NVIDIA H200", precision="bf16", ranks=1, memory_gib=139.0, kernels=kernels,
        engine={stage: engine for stage in range(4)},
        assumed=[
            "experts compute as fast as other products", "attention reaches 300 TF/s", "other passes run like a copy",
            "a kernel takes 5 us to start", "DeepSpeed adds 1 ms a step and 20 us a tensor",
            "the update moves 50 bytes a parameter",
        ],
    )  # fmt: skip
