"""ImpForPreTraining: the encoder and every task's objectives, as the one module that DeepSpeed wraps."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForPreTraining

from imp_ds.errors import UserError
from imp_ds.families.train_module import OwnLoss, StepOutput, TrainModule, likeliest
from imp_ds.modalities.modality import TEXT, get_modality
from imp_ds.modalities.vision.patches import PatchProjection
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel, ImpPreTrainedModel
from imp_ds.objectives.captioning import CaptioningObjective
from imp_ds.objectives.objective import ClassObjective
from imp_ds.objectives.registry import build_objective
from imp_ds.tasks import Batch


class TaskObjectives(nn.Module):
    """The objectives of one task on one batch, weighted, and summed or averaged (release: ObjectiveAggregator)."""

    def __init__(self, specs: list[dict], reduction: str, config: ImpConfig):
        super().__init__()
        self.parts = nn.ModuleList(build_objective(spec, config) for spec in specs)
        self.weights = [spec.get("weight", 1.0) for spec in specs]
        kinds = [spec["kind"] for spec in specs]
        # two objectives of one kind are distinguished by their position
        self.names = [kind if kinds.count(kind) == 1 else f"{kind}_{i}" for i, kind in enumerate(kinds)]
        self.reduction = reduction

    @property
    def compares_samples(self) -> bool:
        return any(part.compares_samples for part in self.parts)

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding] | None = None) -> dict[str, Encoding]:
        """Every sequence that the objectives ask for, once, and those of `encodings` as they are: by a modality's name it alone,
        others by names that the objectives know."""
        encodings = dict(encodings or {})
        for part in self.parts:
            part.encode(model, batch, encodings)
        return encodings

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


def _reports(encodings: dict[str, Encoding]) -> dict[str, list]:
    return {name: encoding.reports for name, encoding in encodings.items()}


class ImpForPreTraining(ImpPreTrainedModel, TrainModule):
    """An ImpModel (`.imp`) and, for each task of `config.objectives`, its objectives with their heads and temperatures.

    `config.objectives` maps a task's name to {"objectives": [spec, ...], "reduction": "sum" | "mean"}.
    """

    last_linears = ("feed_forward.down.weight", "feed_forward.experts.w2", "feed_forward.down.experts.w")

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

    def forward(self, batch: Batch, fn: Callable | None = None) -> StepOutput:
        """The loss of one task's batch, this rank's share of the global mean, and what else a `TrainModule` gives of it."""
        if batch.task not in self.objectives:
            raise UserError("the model was not built for this task", got=batch.task, allowed=", ".join(self.objectives))
        if fn is not None:
            return fn(self, batch)
        encodings = self.encode(batch)
        loss, metrics = self.objectives[batch.task](self.imp, encodings, batch.targets)
        router_loss = self.imp.router_loss(*encodings.values())
        metrics["loss/router"] = router_loss.detach()
        return StepOutput(loss + router_loss, metrics, _reports(encodings))

    def encode(self, batch, encodings: dict[str, Encoding] | None = None) -> dict[str, Encoding]:
        """What the objectives of a batch's task read, through the encoder, by name; what is in `encodings` is there already."""
        return self.objectives[batch.task].encode(self.imp, batch, encodings)

    def compares_samples(self, task: str) -> bool:
        return self.objectives[task].compares_samples

    def own_loss(self, batch: Batch, encodings: dict[str, Encoding]) -> OwnLoss:
        loss, metrics = self.objectives[batch.task](self.imp, encodings, batch.targets, False)
        return OwnLoss(loss, metrics, self.imp.router_loss(*encodings.values()), _reports(encodings))

    def compare(self, task, pooled, targets):
        encodings = {name: Encoding(None, None, pooled_BD, []) for name, pooled_BD in pooled.items()}
        return self.objectives[task](self.imp, encodings, targets, True)

    def blocks(self) -> list[nn.Module]:
        return list(self.imp.blocks)

    def decays(self, module: nn.Module, name: str) -> bool:
        return super().decays(module, name) or isinstance(module, PatchProjection) and name == "weight"

    @torch.no_grad()
    def answer(self, task: str | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """The probability of each class of a task that has a classification head, or names as candidates: float32
        [B, K], in the order of `answer_names(task)`. Under sigmoid the classes do not exclude each other.

        Args:
            task: None: the only one of that kind.
            inputs: of the modalities that the task reads, as `ImpProcessor` gives them; with `answer_mask=True` where the
                answer is read at a mask.

        Raises UserError for a task of another kind, for inputs that it does not read, and for a text without a mask.
        """
        task, objective = self.answering(task)
        names = {modality: get_modality(modality).inputs for modality in self.config.modalities}
        given = {of: {name: inputs[name] for name in own if inputs.get(name) is not None} for of, own in names.items()}
        given = {modality: named for modality, named in given.items() if named}
        if set(given) != set(objective.inputs):
            allowed = f"inputs of {' and '.join(objective.inputs)}"
            raise UserError(f"the task {task} reads something else", got=", ".join(given) or "no inputs", allowed=allowed)
        if objective.answer_at == "mask" and not (given["text"]["input_ids"] == self.config.mask_token_id).any(1).all():
            raise UserError(
                f"the task {task} reads its answer at a mask", got="a text without the tokenizer's mask token",
                fix="processor(..., answer_mask=True)",
            )  # fmt: skip
        return objective.probabilities(self.imp, self.encode(Batch(task, given, {})))

    def predict(self, task: str | None = None, *, top: int | None = None, **inputs: torch.Tensor) -> list[dict[str, float]]:
        """For each input {class name: probability}, the likeliest first: `answer` by name. top: that many classes; None: all."""
        names = self.answer_names(task)
        return [likeliest(names, answer_K, top) for answer_K in self.answer(task, **inputs).cpu()]

    def answering(self, task: str | None = None) -> tuple[str, nn.Module]:
        """The name of a task that distinguishes classes, and its objective. task: None: the only one. Raises UserError when there
        is no such task, and where None could mean several."""
        return self._only_task(ClassObjective, task, "distinguishes classes")

    def _only_task(self, kind: type, task: str | None, does: str) -> tuple[str, nn.Module]:
        """The name of a task with an objective of that class, and the objective. task: None: the only one."""
        found = {name: part for name, of in self.objectives.items() for part in of.parts if isinstance(part, kind)}
        if task is None and len(found) == 1:
            task = next(iter(found))
        if task is None and found:
            fix = f"name one: --task {next(iter(found))}, or task={next(iter(found))!r} in Python"
            raise UserError(f"several tasks of the model could be meant: each {does}", allowed=", ".join(found), fix=fix)
        if task not in found:
            raise UserError(f"no task that {does}", got=f"task = {task}", allowed=", ".join(found) or "the model has none")
        return task, found[task]

    def captioner(self, task: str | None = None) -> tuple[str, CaptioningObjective]:
        """The name of a task that generates captions, and its objective. task: None: the only one. Raises UserError when there is
        no such task, and where None could mean several."""
        return self._only_task(CaptioningObjective, task, "generates captions")

    @torch.no_grad()
    def generate_captions(
        self, task: str | None = None, *, beam: int = 4, longest: int = 32, length_penalty: float = 1.0, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """Captions of images, videos or recordings by beam search: int64 [B, L], the end token at the end and wherever a caption
        is shorter; `processor.batch_decode(ids, skip_special_tokens=True)` makes texts of them.

        Args:
            task: of those that generate captions, which may be that of another modality; None: the only one.
            beam: beginnings that are kept; 1 is greedy search.
            longest: words of a caption at most, the end with them.
            length_penalty: 0 prefers short captions; the larger, the longer.
            inputs: of one modality, as `ImpProcessor` gives them.

        Raises UserError for inputs of no modality or of several, a task that generates no captions, and as `beam_search`.
        """
        task, objective = self.captioner(task)
        names = {modality: get_modality(modality).inputs for modality in self.config.modalities}
        given = [modality for modality, own in names.items() if inputs.get(own[0]) is not None]
        if len(given) != 1 or given == [TEXT]:
            allowed = ", or ".join(own[0] for modality, own in names.items() if modality != TEXT)
            raise UserError("captions are generated from one modality", got=", ".join(inputs) or "no inputs", allowed=allowed)
        (modality,) = given
        named = {name: inputs[name] for name in names[modality] if name in inputs}
        vectors_VC = objective.candidates.vectors(self.imp, objective.candidates.encode(self.imp, task))
        ids_BL, _ = objective.generate(
            self.imp, objective.conditioning_prefix(self.imp, task, modality, named), vectors_VC, size=beam,
            longest=min(longest, self.config.text_max), length_penalty=length_penalty,
        )  # fmt: skip
        return ids_BL


AutoModelForPreTraining.register(ImpConfig, ImpForPreTraining)
