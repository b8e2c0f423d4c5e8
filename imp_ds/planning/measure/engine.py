"""Measuring what DeepSpeed and the optimizer add to a step, and the whole of `imp_ds profile OUT.json`."""

import os
from pathlib import Path

import torch
from torch import nn

from imp_ds.families.train_module import StepOutput, TrainModule
from imp_ds.parallel.groups import is_main, on_main, world_size
from imp_ds.planning.hardware_profile import EngineRate, HardwareProfile, Link
from imp_ds.planning.measure.kernels import DTYPES, KernelTimer, machine_name, measure_links, seconds_of
from imp_ds.planning.time import Network, Weights, gradient_seconds, weight_seconds
from imp_ds.train.engine.engine import Engine, start_process_group

NEVER = 1_000_000_000


class Chain(TrainModule):
    """`tensors` square linear layers in a row and a loss of what comes out, in the form that the engine trains."""

    def __init__(self, tensors: int, width: int):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(tensors))

    def forward(self, x: torch.Tensor) -> StepOutput:
        for layer in self.linears:
            x = layer(x)
        return StepOutput(x.square().mean(), {}, {})


def engine_config(stage: int, device: torch.device, dtype: torch.dtype) -> dict:
    """As the shipped configurations have it, for one row a rank."""
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0, "steps_per_print": NEVER,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True, "fused": device.type == "cuda"}},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": {"stage": stage, "contiguous_gradients": True, "reduce_scatter": True, "overlap_comm": False},
    }  # fmt: skip


def engine_rate(stage: int, device: torch.device, dtype: torch.dtype, links: dict[str, Link]) -> EngineRate:
    """From three chains: few small linear layers, many small ones, few large ones. Their own products and the
    communication that the links account for are taken off."""
    (base, tensors_a, held_a), (many, tensors_b, held_b), (large, tensors_c, held_c) = (
        (_added(stage, tensors, width, device, dtype, links), tensors, tensors * width**2)
        for tensors, width in ((8, 64), (72, 64), (8, 768))
    )
    tensor_s = max(0.0, (many - base) / (tensors_b - tensors_a))  # the parameters of such small layers cost nothing
    parameter_s = max(0.0, (large - base) / (held_c - held_a))
    owned_s = min(update_seconds(device), parameter_s * (world_size() if stage else 1))
    held_s = parameter_s - owned_s / (world_size() if stage else 1)
    return EngineRate(step_s=max(0.0, base - tensors_a * tensor_s), tensor_s=tensor_s, held_s=max(0.0, held_s), owned_s=owned_s)


def _added(stage: int, tensors: int, width: int, device: torch.device, dtype: torch.dtype, links: dict[str, Link]) -> float:
    """Seconds that a step of a chain takes beyond its forward and backward in plain torch and its communication."""
    plain = Chain(tensors, width).to(device, dtype)
    row = torch.randn(1, width, device=device, dtype=dtype)

    def alone():
        plain.zero_grad()
        plain(row)[0].backward()

    without = seconds_of(alone, device, 0.2)
    engine = Engine(Chain(tensors, width), engine_config(stage, device, dtype), weight_decay=0.0, device=device)

    def step():
        engine.forward(row)
        engine.update(1e-4)

    full = seconds_of(step, device, 0.8)
    ranks, held = world_size(), tensors * width**2
    weights, network = Weights(held, 0, held, 0, tensors, tensors, held, tensors, tensors), Network(gpus=ranks, measured=links)
    precision = next(name for name, kind in DTYPES.items() if kind == dtype)
    sent = gradient_seconds(weights, stage, ranks, 1, precision, network)
    sent += weight_seconds(weights, stage, 1, ranks, 1, precision, network)
    return max(0.0, full - without - sent)


def update_seconds(device: torch.device) -> float:
    """AdamW on float32, a parameter."""
    numel = 2**21
    flat = nn.Parameter(torch.zeros(numel, device=device))
    flat.grad = torch.ones_like(flat)
    optimizer = torch.optim.AdamW([flat], lr=1e-6)
    return seconds_of(optimizer.step, device) / numel


def measure(device: torch.device, precision: str) -> HardwareProfile:
    """The hardware profile of this machine, measured on all ranks at once; every rank calls it, and rank 0's figures count."""
    dtype, links = DTYPES[precision], measure_links(device)
    kernels = KernelTimer(device, dtype).kernel_rates()
    hot = measure_links(device, after_work=False)  # a chain of small linear layers is little but collectives
    engine = {stage: engine_rate(stage, device, dtype, hot) for stage in range(4)}
    return HardwareProfile(
        machine=machine_name(device), precision=precision, ranks=world_size(), memory_gib=memory_gib(device), kernels=kernels,
        engine=engine, links=links,
    )  # fmt: skip


def memory_gib(device: torch.device) -> float:
    """What one rank may fill: a GPU, or its share of a machine on which all ranks run."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    pages, page = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    return pages * page / 2**30 / world_size()


def command(out: Path, precision: str | None = None) -> None:
    """Measure and write `out`. Precision: bf16 on a GPU and float32 on a CPU, unless given."""
    device = start_process_group()
    profile = measure(device, precision or ("bf16" if device.type == "cuda" else "float32"))
    on_main(lambda: profile.save(out), "the hardware profile cannot be written")
    if is_main():
        print(f"wrote {out}: {profile.machine}, {profile.precision}, {profile.ranks} rank(s)")
