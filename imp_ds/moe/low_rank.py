"""Low-rank changes of weights that stay as they are (LoRA: Hu et al., 2021, arXiv 2106.09685), of a linear layer and of experts.

    y = x W + scale * dropout(x) A B        scale = alpha / r

B is 0 at first, so that nothing is changed. Rows go through A and B one after the other: A B is never made in training.

Names are those of the changed layer with `.lora` behind it: `q_proj.lora.A`, `experts.lora.w1.A`. Those of experts are stacks
over experts, which are sliced, spread over ranks and reduced with them.

Shapes: B batch, L tokens of an example, N rows in expert order, E experts held here, I inputs and O outputs of a layer, R rank.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.moe.kernels.compute import Count, linear_forward
from imp_ds.randomness import derive, dropout

_EXPERTS = 1 << 20  # numbers of experts of one site, by which their draws differ
_ALIGNED = 8  # what the rank is a multiple of in grouped products on a GPU, whose rows begin at 16 bytes: zeros fill it


class LowRank(nn.Module):
    """scale * dropout(x) A^T B^T, [B, L, I] -> [B, L, O], in the type of x. A [R, I] and B [O, R], as PEFT has them.

    site: a number of its own among those of a model, by which its dropout differs from theirs.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float, rate: float = 0.0, site: int = 0):
        super().__init__()
        self.in_features, self.rank, self.scale, self.rate, self.site = in_features, rank, alpha / rank, rate, site
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, rank))

    def forward(self, x_BLI: torch.Tensor, key_B: torch.Tensor | None = None) -> torch.Tensor:
        """key_B: the samples' random keys, int64; None: nothing is dropped."""
        if self.rate and key_B is not None:
            x_BLI = dropout(x_BLI, self.rate, derive(key_B, self.site))
        return F.linear(F.linear(x_BLI, self.A.to(x_BLI.dtype)) * self.scale, self.B.to(x_BLI.dtype))

    def draw(self, generator_for) -> None:
        """Fill both, in place; `generator_for("A")` is A's source of randomness."""
        _draw(self.A, self.in_features, generator_for("A"))
        nn.init.zeros_(self.B)

    def product(self) -> torch.Tensor:
        """What it adds to the weight of a linear layer: [O, I], float32."""
        return self.B.float() @ self.A.float() * self.scale


class LowRankExperts(nn.Module):
    """Of each expert scale * dropout(x) A B on its rows, [N, I] -> [N, O], in the type of x. A [E, I, R] and B [E, R, O].

    num_experts, first: as of `imp_ds.moe.experts.ExpertWeights`.
    """

    def __init__(
        self, in_features: int, out_features: int, num_experts: int, first: int, *, rank: int, alpha: float, rate: float = 0.0,
        site: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.in_features, self.out_features, self.num_experts, self.first = in_features, out_features, num_experts, first
        self.rank, self.alpha, self.scale, self.rate, self.site = rank, alpha, alpha / rank, rate, site
        self.A = nn.Parameter(torch.empty(num_experts, in_features, rank))
        self.B = nn.Parameter(torch.empty(num_experts, rank, out_features))

    def part(self, num_experts: int, first: int) -> "LowRankExperts":
        """A fresh one of other experts of the layer."""
        sizes = self.in_features, self.out_features, num_experts, first
        return LowRankExperts(*sizes, rank=self.rank, alpha=self.alpha, rate=self.rate, site=self.site)

    def forward(self, x_NI: torch.Tensor, rows: Count, key_N: torch.Tensor | None = None) -> torch.Tensor:
        """rows: as of `Experts.forward`; key_N: random keys of the rows' tokens, int64; None: nothing is dropped."""
        if self.rate and key_N is not None:
            x_NI = dropout(x_NI, self.rate, derive(key_N, self._numbers(len(x_NI), rows, key_N.device)))
        a_EIR, b_ERO = self.A, self.B
        if x_NI.is_cuda and (more := -self.rank % _ALIGNED):
            a_EIR, b_ERO = F.pad(a_EIR, (0, more)), F.pad(b_ERO, (0, 0, 0, more))
        return linear_forward(linear_forward(x_NI, rows, a_EIR) * self.scale, rows, b_ERO)

    def _numbers(self, total: int, rows: Count, device) -> torch.Tensor:
        """A number for each row, by site and expert: a token has draws of its own in each of its experts."""
        number_E = torch.arange(self.num_experts, device=device) + (self.site * _EXPERTS + self.first)
        count_E = torch.full_like(number_E, total // self.num_experts) if rows is None else torch.as_tensor(rows, device=device)
        return number_E.repeat_interleave(count_E, output_size=total)

    def draw(self, generator_for) -> None:
        """Fill both, in place; `generator_for("A.3")` is the source of randomness of the layer's expert 3."""
        for place in range(self.num_experts):
            _draw(self.A[place], self.in_features, generator_for(f"A.{self.first + place}"))
        nn.init.zeros_(self.B)

    def product(self, place: int) -> torch.Tensor:
        """What it adds to the matrix of an expert that is held here: [I, O], float32."""
        return self.A[place].float() @ self.B[place].float() * self.scale


class LowRankStacks(nn.Module):
    """The changes of some of an experts' matrices, by the matrices' names: `w1`, `w2`, `w3`."""

    def __init__(self, stacks: dict[str, LowRankExperts]):
        super().__init__()
        for name, stack in stacks.items():
            self.add_module(name, stack)

    @property
    def drops(self) -> bool:
        """Whether training drops a share of what enters them."""
        return any(stack.rate for stack in self.children())

    def part(self, num_experts: int, first: int) -> "LowRankStacks":
        return LowRankStacks({name: stack.part(num_experts, first) for name, stack in self.named_children()})


@torch.no_grad()
def _draw(tensor: torch.Tensor, fan_in: int, generator: torch.Generator | None) -> None:
    """Kaiming uniform with a = sqrt(5), as PEFT and torch's linear layers have it: within 1 / sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)
    tensor.uniform_(-bound, bound, generator=generator)
