"""Measuring a machine's hardware profile: kernels as training runs them, forward and backward through autograd, each at two
sizes.

Under a launcher all ranks measure at once, since they share a machine's memory and cores, and the links between them are
measured too. Of several repetitions the median counts; of collectives in a step the mean, since it waits for the slow ones too.

Shapes: T tokens, D width, F = 4 D, E experts, N rows in expert order.
"""

import platform
import statistics
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from imp_ds.costs import Kernel, product
from imp_ds.families.imp.costs.flops import attention
from imp_ds.families.imp.costs.flops_experts import mixture
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.moe.experts import Experts
from imp_ds.moe.layer import MoELayer
from imp_ds.parallel.groups import barrier, world_size
from imp_ds.planning.hardware_profile import KernelRate, Link
from imp_ds.train.matrix_peak import times_of, wait_for

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
WIDTHS = (128, 384, 1024)  # of products; between them rates are interpolated
EXPERTS = 8
# of a rank's message, float32: 1 KiB; 1 MiB, as ZeRO 3 gathers a layer's weights; 16 MiB, as a model's gradients, which no
# cache holds
LINK_ELEMENTS = 2**8, 2**18, 2**22
LINK_S = 0.5  # that each size of each collective is measured after work
FEW, MANY, LARGE = 16, 1024, 4096  # tokens: few show what a start costs, many what a FLOP does, most what a byte does


def seconds_of(function: Callable, device: torch.device, limit_s: float = 0.4) -> float:
    """The median time of a call, all ranks calling at once."""
    barrier()
    return statistics.median(times_of(function, device, limit_s))


def training(module: Callable, *inputs: torch.Tensor) -> Callable:
    """A call that runs `module` on the inputs forward and backward, with gradients made anew as a step makes them."""
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []

    def call():
        for tensor in (*inputs, *parameters):
            tensor.grad = None
        output = module(*inputs)
        output = output[0] if isinstance(output, tuple) else output
        output.backward(gradient)

    first = module(*inputs)
    gradient = torch.randn_like(first[0] if isinstance(first, tuple) else first)
    return call


def shapes(width: int, num_attention_heads: int = 6, **settings) -> PreTrainedConfig:
    """A model of the family whose kernels are counted, for the shapes in it."""
    settings = {"intermediate_size": 4 * width, "moe_layers": "last:1", **settings}
    return ModelSettings(hidden_size=width, num_attention_heads=num_attention_heads, **settings).to_config(1000, [])


def spread(module: nn.Module) -> None:
    """Weights as a model begins with, so that routers choose all experts and nothing is zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)


def bytes_per_second(more: float, short: float, long: float) -> float:
    """From the seconds that two calls took, of which the longer moved `more` bytes more. A difference hidden by noise counts
    as a fiftieth of the longer call: nothing is moved for nothing."""
    return more / max(long - short, 0.02 * long)


class KernelTimer:
    """Rates of every kind of kernel on `device` in `dtype`."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self.size = device, dtype, dtype.itemsize

    def kernel_rates(self) -> dict[str, KernelRate]:
        """By kind. The bytes a second of products are those of a copy: no product here is bound by them."""
        found = {kind: self._passes(*arguments) for kind, arguments in self._elementwise().items()}
        copy = found["copy"].bytes_per_s
        found["product"] = self._products(self._linear, copy)
        found["experts"] = self._products(self._experts(found["gelu"]), copy)
        found["attention"] = self._attention()
        found["routing"] = self._routing()
        return found

    def _tensor(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype).requires_grad_()

    def _seconds(self, module: Callable, *inputs: torch.Tensor) -> float:
        return seconds_of(training(module, *inputs), self.device)

    def _products(self, measure: Callable, copy: float) -> KernelRate:
        """`measure(tokens, width)` gives (seconds, kernel): many tokens show the FLOPs a second, few the start."""
        flops = {}
        for width in WIDTHS:
            seconds, kernel = measure(MANY, width)
            flops[width] = kernel.flops / seconds
        rate = KernelRate(overhead_s=0.0, bytes_per_s=copy, flops_per_s=flops)
        seconds, kernel = measure(FEW, WIDTHS[0])
        return rate.model_copy(update={"overhead_s": max(0.0, seconds - rate.seconds(kernel))})

    def _linear(self, tokens: int, width: int) -> tuple[float, Kernel]:
        """The mean of the two linear layers of a feed-forward, which are equally large."""
        seconds = []
        for in_features, out_features in ((width, 4 * width), (4 * width, width)):
            layer = nn.Linear(in_features, out_features, bias=False, device=self.device, dtype=self.dtype)
            seconds.append(self._seconds(layer, self._tensor(tokens, in_features)))
        return statistics.mean(seconds), product(tokens, width, 4 * width, self.size)

    def _experts(self, gelu: KernelRate) -> Callable:
        """The experts' feed-forwards without what their activation would take as a kernel of its own."""

        def measure(tokens: int, width: int) -> tuple[float, Kernel]:
            config = shapes(width, num_attention_heads=1, num_experts=EXPERTS)
            experts = Experts(width, 4 * width, EXPERTS, "gelu").to(self.device, self.dtype)
            spread(experts)
            found = {kernel.kind: kernel for kernel in mixture(config, 1, tokens, self.size)}
            seconds = self._seconds(experts, self._tensor(tokens, width))
            return max(seconds - gelu.seconds(found["gelu"]), 0.1 * seconds), found["experts"]

        return measure

    def _elementwise(self) -> dict[str, tuple]:
        width = 384
        norm = nn.LayerNorm(width, bias=False, device=self.device, dtype=self.dtype)
        return {
            "norm": (norm, width, 5, 1),
            "gelu": (lambda x: F.gelu(x, approximate="tanh"), width, 5, 1),
            # a residual and a copy: forward 3 + 2 passes, backward a sum of two gradients, 3, and a copy, 2
            "copy": (lambda x: x + x.clone(), width, 10, 2),
        }

    def _passes(self, module: Callable, width: int, number: int, calls: int) -> KernelRate:
        """`number` passes over a tensor in `calls` kernels."""
        short, long = (self._seconds(module, self._tensor(tokens, width)) for tokens in (FEW, LARGE))
        rate = bytes_per_second(number * (LARGE - FEW) * width * self.size, short, long)
        return KernelRate(overhead_s=max(0.0, short - number * FEW * width * self.size / rate) / calls, bytes_per_s=rate)

    def _attention(self) -> KernelRate:
        """Short sequences are bound by what they move, long ones by their products."""
        config = shapes(384)

        def measure(samples: int, length: int) -> tuple[float, Kernel]:
            tensors = [self._tensor(samples, config.num_attention_heads, length, 64) for _ in range(3)]
            kernel = next(k for k in attention(config, samples, length, self.size) if k.kind == "attention")
            return self._seconds(F.scaled_dot_product_attention, *tensors), kernel

        (start, least), (short, moving), (long, computing) = measure(1, 16), measure(128, 16), measure(8, 256)
        bandwidth = bytes_per_second(moving.bytes - least.bytes, start, short)
        overhead = max(0.0, start - least.bytes / bandwidth)
        flops = computing.flops / max(long - overhead, 1e-9)
        return KernelRate(overhead_s=overhead, bytes_per_s=bandwidth, flops_per_s={0: flops})

    def _routing(self) -> KernelRate:
        """A MoE layer of narrow experts without its experts."""
        config = shapes(384, intermediate_size=64, num_experts=EXPERTS)

        def measure(samples: int, length: int) -> tuple[float, float]:
            layer = MoELayer(384, 64, EXPERTS).to(self.device, self.dtype)
            spread(layer)
            kernel = next(k for k in mixture(config, samples, length, self.size) if k.kind == "routing")
            rows = max(EXPERTS, samples * length)
            full = self._seconds(layer, self._tensor(samples, length, 384))
            return max(full - self._seconds(layer.experts, self._tensor(rows, 384)), 0.05 * full), kernel.bytes

        (short, little), (long, much) = measure(1, FEW), measure(MANY // 256, 256)
        rate = bytes_per_second(much - little, short, long)
        return KernelRate(overhead_s=max(0.0, short - little / rate), bytes_per_s=rate)


def measure_links(device: torch.device, after_work: bool = True) -> dict[str, Link]:
    """The collectives among all ranks, from messages of three sizes; nothing for one rank.

    after_work: as a step meets them, after work that has emptied the caches, which takes up to three times as long; False: one
    right after another.
    """
    seconds = _mean_after_work if after_work else seconds_of
    ranks, found = world_size(), {}
    if ranks == 1:
        return found
    for name, share in (("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1), ("all_to_all", 1)):
        small, middle, large = (share * 4 * (ranks - 1) * numel for numel in LINK_ELEMENTS)
        start, short, long = (seconds(_collective(name, numel * ranks, device), device) for numel in LINK_ELEMENTS)
        rate = bytes_per_second(middle - small, start, short)
        found[name] = Link(
            latency_s=max(0.0, start - small / rate), bytes_per_s=bytes_per_second(large - middle, short, long),
            short_bytes=middle, short_bytes_per_s=rate,
        )  # fmt: skip
    return found


def _mean_after_work(function: Callable, device: torch.device) -> float:
    """The mean time of a call, all ranks calling at once after some work."""
    cold = torch.zeros(2**22, device=device)

    def work():
        cold.add_(1.0)
        wait_for(device)
        barrier()

    return statistics.mean(times_of(function, device, LINK_S, before=work))


def _collective(name: str, numel: int, device: torch.device) -> Callable:
    full, part = torch.zeros(numel, device=device), torch.zeros(numel // world_size(), device=device)
    calls = {
        "all_reduce": lambda: dist.all_reduce(full),
        "all_gather": lambda: dist.all_gather_into_tensor(full, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, full),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(full), full),
    }
    return calls[name]


def machine_name(device: torch.device) -> str:
    """What the profile belongs to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s) a rank"
