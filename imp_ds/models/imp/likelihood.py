"""One head for all tasks: the answer is the candidate whose vector is nearest (Uni-Perceiver, arXiv 2112.01522, section 3;
release, `embed_cls_predictor.py`).

    P(x, y) ~ exp(s cos(g f(x), g f(y)))

f g is the encoder and this head, the same for queries and candidates; s is learned for each
family of tasks. What stands for a sequence is the state of one token, <SPE>, which is the tokenizer's mask token.

Shapes: B examples, L tokens of an example, D width, C width of the common space, N states, K candidates.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from imp_ds.errors import UserError

LARGEST_SCALE = 100.0
INITIAL_TEMPERATURE = 0.07


class _Capped(torch.autograd.Function):
    """min(x, LARGEST_SCALE). A gradient that would push further beyond the cap is dropped; one that leads back is not, or a scale
    that has once met the cap would stay there."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.clamp(max=LARGEST_SCALE)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient.masked_fill((x >= LARGEST_SCALE) & (gradient < 0), 0.0)


class Scale(nn.Module):
    """The learned inverse temperature of a family of tasks, float32 [1], at most LARGEST_SCALE. A module, so that ZeRO 3 gathers
    it when called."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(1))  # of one element: DeepSpeed's first broadcast refuses scalars

    def initialize_parameters(self) -> None:
        init.constant_(self.log_scale, -math.log(INITIAL_TEMPERATURE))

    def forward(self) -> torch.Tensor:
        return _Capped.apply(self.log_scale.float().exp())


class LikelihoodHead(nn.Module):
    """From states of the encoder to unit vectors, and from those to logits. forward: states [N, D] -> float32 [N, C].

    families: of tasks, each with a scale of its own.
    """

    def __init__(self, config, families: list[str]):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.linear = nn.Linear(config.hidden_size, config.common_dim)
        self.scales = nn.ModuleDict({family: Scale() for family in families})

    def forward(self, states_ND: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.linear(self.norm(states_ND)).float(), dim=-1, eps=1e-6)

    def scale(self, family: str) -> torch.Tensor:
        """The scale of a family, float32 [1]. Raises UserError for one that was not trained."""
        if family not in self.scales:
            raise UserError("the model has no such family of tasks", got=family, allowed=", ".join(self.scales))
        return self.scales[family]()

    def logits(self, vectors_NC: torch.Tensor, candidates_KC: torch.Tensor, family: str) -> torch.Tensor:
        """s cos of each vector with each candidate, both of unit length: float32 [N, K]."""
        return vectors_NC @ candidates_KC.T * self.scale(family)


def spe_inputs(config, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A text of the one token <SPE> for each of `batch` examples. Raises UserError for a model that knows of none."""
    if config.mask_token_id is None:
        raise UserError(
            "the likelihood head reads the state of the mask token, which this model does not know", got="mask_token_id = None",
            fix="set mask_token_id in its configuration to the id of the tokenizer's mask token",
        )  # fmt: skip
    return {"input_ids": torch.full((batch, 1), config.mask_token_id, device=device)}


def encode_with_spe(
    model, parts: list[tuple], key_B: torch.Tensor | None = None, valid_B: torch.Tensor | None = None, **layers: bool
):
    """The Encoding of <SPE> and the segments of `parts`, as `ImpModel.encode_segments` takes them and `layers`; its `pooled_BD`
    is the state of <SPE>, and the first of its `lengths` is 1.

    As in the release <SPE> has the condition of the segment that follows it. valid_B: False for examples that are all padding.
    """
    modality, inputs, condition = parts[0]
    first = next(iter(inputs.values()))
    spe = spe_inputs(model.config, len(first), first.device)
    if valid_B is not None:
        spe["attention_mask"] = valid_B[:, None]
    condition = model.condition(modality) if condition is None else condition
    encoding = model.encode_segments([("text", spe, condition), (modality, inputs, condition), *parts[1:]], key_B, **layers)
    return replace(encoding, pooled_BD=encoding.tokens_BLD[:, 0])


def encode_at_mask(model, parts: list[tuple], key_B: torch.Tensor | None = None):
    """The Encoding of the segments of `parts`, of which the last text has a mask token: its `pooled_BD` is the state of the first
    one there. A text without one would be read at its beginning; the code that makes the texts ensures one."""
    spe_inputs(model.config, 1, torch.device("cpu"))  # that there is such a token
    encoding = model.encode_segments(parts, key_B)
    position = max(i for i, (modality, _, _) in enumerate(parts) if modality == "text")
    is_mask_BL = parts[position][1]["input_ids"] == model.config.mask_token_id
    index_B = is_mask_BL.int().argmax(1) + sum(encoding.lengths[:position])
    return replace(encoding, pooled_BD=encoding.tokens_BLD[torch.arange(len(index_B), device=index_B.device), index_B])
