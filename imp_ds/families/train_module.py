"""What a model must be for the engine to train it."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.moe.experts import ExpertWeights
from imp_ds.moe.low_rank import LowRank, LowRankExperts
from imp_ds.moe.routers.router import Router
from imp_ds.moe.routing import RouterReport
from imp_ds.moe.soft_merging import MergeRouter
from imp_ds.tasks import Batch


class StepOutput(NamedTuple):
    """What a model gives of a batch: the loss, a mean over `TrainModule.weight(batch)` units with the routers' losses in it;
    metrics by name, detached; the reports of the routers, by sequence and layer."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    reports: dict[str, list[RouterReport]]


class OwnLoss(NamedTuple):
    """`StepOutput` without what compares samples, and with the routers' losses beside the loss."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    router_loss: torch.Tensor
    reports: dict[str, list[RouterReport]]


class TrainModule(nn.Module):
    """A model with all of its losses: the one module that DeepSpeed wraps. It is a PreTrainedModel too, where it is exported.

    last_linears: names, in a block, of the weights of its last linear layer, of which interference is measured; a block has one
        of them.

    A family whose losses are means over samples or tokens defines `forward`, and `weight` where it is not the number of samples.
    One whose losses compare samples also defines what GradCache needs: `encode`, `own_loss`, `compare`.
    """

    last_linears: ClassVar[tuple[str, ...]] = ()

    def forward(self, batch: Batch, fn: Callable | None = None) -> StepOutput:
        """The output for one task's batch; or what `fn(model, batch)` returns, which is called from here because ZeRO 3 finds
        the weights of what runs inside a forward."""
        raise NotImplementedError

    def weights_differ(self, batch: Batch) -> bool:
        """Whether ranks and micro-batches of a step of its task may have different weights: they are exchanged then."""
        return False

    def weight(self, batch: Batch) -> torch.Tensor:
        """How many units (supervised tokens, say) the loss of `batch` is a mean of, a scalar; asked where `weights_differ`."""
        raise NotImplementedError

    def compares_samples(self, task: str) -> bool:
        """Whether the loss of a sample depends on the others of its batch (GradCache), or not (plain gradient accumulation)."""
        return False

    def encode(self, batch: Batch) -> dict:
        """What is compared, by name: objects with `pooled_BD`, one row for each sample; nothing where no samples are compared."""
        return {}

    def own_loss(self, batch: Batch, encodings: dict) -> OwnLoss:
        """The losses that are means over samples or tokens; `encodings` are those that `encode` gave."""
        loss, metrics, reports = self(batch)
        return OwnLoss(loss, metrics, loss.new_zeros(()), reports)

    def compare(
        self, task: str, pooled: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and metrics of what compares samples, from their pooled encodings [B, D] alone."""
        raise NotImplementedError

    def blocks(self) -> list[nn.Module]:
        """The blocks of the model, which are compiled and whose last linear layers are measured for interference."""
        return []

    def answering(self, task: str | None = None) -> tuple[str, nn.Module]:
        """The name of a task that distinguishes classes, and its objective (`imp_ds.objectives.ClassObjective`). task: None: the
        only one. Raises UserError when there is no such task, and where None could mean several."""
        raise UserError("no task that distinguishes classes", got=f"task = {task}", allowed="the model has none")

    def answer(self, task: str | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """The probability of each class of such a task, float32 [B, K]. Raises UserError as `answering`."""
        raise NotImplementedError

    def answer_names(self, task: str | None = None) -> list[str]:
        """The names of the classes that `answer` gives probabilities of. Raises UserError as `answering`."""
        return list(self.answering(task)[1].class_names)

    def decays(self, module: nn.Module, name: str) -> bool:
        """Whether weight decay acts on a parameter of `module` of that name: on matrices that multiply, not on norms, biases,
        tables or temperatures (IMP release, `optimizers.py`)."""
        multiply = (ExpertWeights, LowRank, LowRankExperts, Router, MergeRouter)
        return isinstance(module, multiply) or isinstance(module, nn.Linear) and name == "weight"


def likeliest(names: list[str], answer_K: torch.Tensor, top: int | None = None) -> dict[str, float]:
    """{name: probability} of the `top` likeliest classes of one input, the likeliest first; None: of all."""
    best = answer_K.topk(min(top or len(names), len(names)))
    return {names[k]: p for k, p in zip(best.indices.tolist(), best.values.tolist())}
