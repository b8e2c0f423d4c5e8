"""Uni-MoE with its losses: the module that DeepSpeed wraps.

Shapes: B conversations, L tokens, N media of a kind, n of them in a conversation at most, D width.
"""

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from imp_ds.errors import UserError
from imp_ds.families.train_module import StepOutput, TrainModule
from imp_ds.models.uni_moe.chunked_loss import NO_LOSS
from imp_ds.models.uni_moe.configuration_uni_moe import MEDIA, UniMoeConfig
from imp_ds.models.uni_moe.experts import decoder_layers
from imp_ds.models.uni_moe.modeling_uni_moe import UniMoeForConditionalGeneration
from imp_ds.models.uni_moe.router_losses import router_losses
from imp_ds.models.uni_moe.towers import INPUTS


class UniMoeForTraining(PreTrainedModel, TrainModule):
    """`.uni_moe` is the UniMoeForConditionalGeneration; the loss is the mean over supervised tokens."""

    config_class = UniMoeConfig
    base_model_prefix = "uni_moe"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_attention_backend = True
    last_linears = ("down_proj.weight", "experts.w2")

    def __init__(self, config: UniMoeConfig):
        super().__init__(config)
        self.uni_moe = UniMoeForConditionalGeneration(config)
        self.given_features: dict[str, tuple[int, int]] = {}  # kinds whose features batches hold: their tokens and width
        self.post_init()

    def _init_weights(self, module):
        self.uni_moe._init_weights(module)

    def save_pretrained(self, *args, **kwargs):
        """What is exported is the model itself, without a prefix in its names."""
        return self.uni_moe.save_pretrained(*args, **kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None, **kwargs):
        """Of the language model; towers that are not trained keep nothing. The reentrant kind would lose what routers give."""
        self.uni_moe.language_model.gradient_checkpointing_enable(
            {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        )

    def forward(self, batch, fn=None):
        if fn is not None:
            return fn(self, batch)
        inputs, labels_BL = batch.inputs["messages"], batch.targets["labels"]
        ids_BL = inputs["input_ids"]
        features, idle = self._features(inputs)
        position_ids = inputs.get("position_ids", self._counted_positions(ids_BL))
        states_BLD = self.uni_moe.hidden_states(
            ids_BL, features, _counted_mask(ids_BL), idle=idle, valid_BL=inputs["attention_mask"].bool(), use_cache=False,
            position_ids=position_ids, key_B=None if batch.key_B is None else batch.key_B[: len(ids_BL)],
        ).last_hidden_state  # fmt: skip
        answers = self.uni_moe.token_loss(states_BLD, labels_BL)
        count = self.weight(batch).clamp(min=1)
        loss = answer_loss = answers.loss_sum / count
        metrics = {"loss/next_token": answer_loss.detach(), "accuracy/next_token": answers.right / count}
        of_routers, reports = router_losses(self.uni_moe.language_model, self.config)
        if of_routers is not None:
            loss = loss + of_routers
            metrics["loss/router"] = of_routers.detach()
        return StepOutput(loss, metrics, {"messages": reports} if reports else {})

    def _counted_positions(self, ids_BL: torch.Tensor) -> torch.Tensor | None:
        """On the meta device positions for a decoder that would take them from the mask, as OPT's; else None: it knows them."""
        if not ids_BL.is_meta or not hasattr(self.uni_moe.get_decoder(), "embed_positions"):
            return None
        return torch.empty_like(ids_BL)

    def weights_differ(self, batch) -> bool:
        return True

    def weight(self, batch) -> torch.Tensor:
        """Supervised tokens."""
        labels_BL = batch.targets["labels"]
        return (labels_BL[:, 1:] != NO_LOSS).sum()

    def blocks(self):
        return decoder_layers(self.uni_moe.language_model)

    def answering(self, task=None):
        got, fix = "a model that is asked, and answers in text", 'imp_ds chat MODEL --image FILE "QUESTION"'
        raise UserError("no task that distinguishes classes", got=got, fix=fix)

    def _features(self, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What the towers make of the batch's media, [N, L, S] by kind; and of one blank medium of each kind that it has none of,
        where other ranks may have some: all ranks then call the same towers and connectors in the same order, and none waits."""
        features, idle = {}, {}
        for kind in (kind for kind in MEDIA if kind in self.config.towers):
            values, positions = INPUTS[kind]
            given = {name: _flat(inputs[name], inputs[f"{kind}_count"]) for name in (values, positions) if name in inputs}
            if f"{kind}_features" in inputs:
                features[kind] = _flat(inputs[f"{kind}_features"], inputs[f"{kind}_count"])
            elif given:
                features[kind] = self.uni_moe.encode_media(kind, given[values], given.get(positions))
            elif dist.is_initialized() and dist.get_world_size() > 1:
                idle[kind] = self._idle(kind, inputs["input_ids"].device)
        return features, idle

    def _idle(self, kind: str, device) -> torch.Tensor:
        """The features of a blank medium; the tower is not called where no rank calls it."""
        if kind in self.given_features:
            return torch.zeros(1, *self.given_features[kind], device=device)
        return self.uni_moe.encode_media(kind, *self.blank(kind, device))

    def blank(self, kind: str, device) -> list[torch.Tensor]:
        """The inputs of one medium that is all zeros, by their order in `INPUTS`."""
        shapes = self.config.media_shapes[kind]
        return [torch.zeros(1, *shapes[name], device=device) for name in INPUTS[kind] if name in shapes]


def _counted_mask(ids_BL: torch.Tensor) -> torch.Tensor | None:
    """On the meta device, where costs are counted, a mask as it is: transformers would look into the positions to make one. Else
    None: padding stands at the end, where no token sees it."""
    return torch.empty(len(ids_BL), 1, *[ids_BL.shape[1]] * 2, device="meta") if ids_BL.is_meta else None


def _flat(values: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """[B, n, ...] -> [N, ...], those that are there."""
    if values.is_meta:
        return values.flatten(0, 1)
    there_Bn = torch.arange(values.shape[1], device=values.device) < count_B.unsqueeze(1)
    return values[there_Bn]
