"""ImpForPreTraining: the encoder and every task's objectives, as the one module that DeepSpeed wraps."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForPreTraining

from imp_ds.errors import UserError
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel, ImpPreTrainedModel
from imp_ds.objectives import build_objective


class TaskObjectives(nn.Module):
    """The objectives of one task on one batch, weighted, and summed or averaged (release: ObjectiveAggregator).

    An objective says by `compares_samples` whether a sample's loss depends on the others of its batch; where not, its loss is
    the mean over the samples.
    """

    def __init__(self, specs: list[dict], reduction: str, config: ImpConfig):
        super().__init__()
        self.parts = nn.ModuleList(build_objective(spec, config) for spec in specs)
        self.weights = [spec.get("weight", 1.0) for spec in specs]
        kinds = [spec["kind"] for spec in specs]
        # two objectives of one kind are told apart by their place
        self.names = [kind if kinds.count(kind) == 1 else f"{kind}_{i}" for i, kind in enumerate(kinds)]
        self.reduction = reduction

    @property
    def compares_samples(self) -> bool:
        return any(part.compares_samples for part in self.parts)

    def forward(self, model: ImpModel, encodings: dict, targets: dict[str, torch.Tensor], compares_samples: bool | None = None):
        """The loss and the metrics of all objectives, or of those alone that compare samples, or do not."""
        total, metrics = 0.0, {}
        for name, weight, part in zip(self.names, self.weights, self.parts):
            if compares_samples is not None and compares_samples != part.compares_samples:
                continue
            loss, found = part(model, encodings, targets)
            total = total + weight * loss
            metrics[f"loss/{name}"] = loss.detach()
            metrics.update(found)
        return total / (len(self.parts) if self.reduction == "mean" else 1), metrics


class ImpForPreTraining(ImpPreTrainedModel):
    """An ImpModel (`.imp`) and, for each task of `config.objectives`, its objectives with their heads and temperatures.

    `config.objectives` maps a task's name to {"objectives": [spec, ...], "reduction": "sum" | "mean"}.
    """

    def __init__(self, config: ImpConfig):
        super().__init__(config)
        self.imp = ImpModel(config)
        self.objectives = nn.ModuleDict(
            {
                task: TaskObjectives(entry["objectives"], entry.get("reduction", "sum"), config)
                for task, entry in config.objectives.items()
            }
        )
        self.post_init()

    def forward(self, batch, way: Callable | None = None):
        """The loss of one task's batch (an `imp_ds.tasks.Batch`).

        Returns the loss (this rank's share of the global mean, router losses included), metrics by name (detached), and
        the router reports of each modality; or what `way(model, batch)` returns, which is called from here because ZeRO 3
        finds the weights of what runs inside a forward.
        """
        if batch.task not in self.objectives:
            raise UserError("the model was not built for this task", got=batch.task, allowed=", ".join(self.objectives))
        if way is not None:
            return way(self, batch)
        encodings = self.encode(batch)
        loss, metrics = self.objectives[batch.task](self.imp, encodings, batch.targets)
        router_loss = self.imp.router_loss(*encodings.values())
        metrics["loss/router"] = router_loss.detach()
        return loss + router_loss, metrics, {modality: encoding.reports for modality, encoding in encodings.items()}

    def encode(self, batch) -> dict[str, Encoding]:
        """Each modality of a batch through the encoder."""
        return {
            modality: self.imp.encode(modality, inputs, batch.key_B, self.imp.condition(modality, batch.task))
            for modality, inputs in batch.inputs.items()
        }


AutoModelForPreTraining.register(ImpConfig, ImpForPreTraining)
