"""A second kind of model: a two-layer causal MoE language model, whose loss is a mean over tokens.

Its embedding is frozen, and its logits are scaled by a persistent buffer. Shapes: B texts, L tokens, D width, V words.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from imp_ds.families.build import build_module
from imp_ds.families.train_module import StepOutput, TrainModule
from imp_ds.models.initialization import initialize_module
from imp_ds.moe.layer import MoELayer
from imp_ds.tasks import Batch

WORDS, WIDTH, HEADS, EXPERTS, LENGTH, IGNORED = 20, 16, 2, 4, 10, -100


class CausalConfig(PreTrainedConfig):
    model_type = "causal_moe"

    def __init__(self, vocab_size: int = WORDS, drop_tokens: bool = False, **settings):
        self.vocab_size, self.drop_tokens, self.initializer_range = vocab_size, drop_tokens, 0.02
        super().__init__(**settings)


class CausalBlock(nn.Module):
    def __init__(self, drop_tokens: bool):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.experts = MoELayer(
            WIDTH, 2 * WIDTH, EXPERTS, router="top_k", experts_per_token=2, drop_tokens=drop_tokens, group_examples=1
        )

    def forward(self, x_BLD, valid_BL):
        qkv = self.qkv(self.first(x_BLD)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv, is_causal=True)  # padding stands at the end: no token sees it
        x_BLD = x_BLD + self.out(mixed.transpose(1, 2).flatten(2))
        routed, report = self.experts(self.second(x_BLD), valid_BL)
        return x_BLD + routed, report


class CausalModel(PreTrainedModel, TrainModule):
    """Its targets are the texts themselves, each token from those before it."""

    config_class = CausalConfig
    last_linears = ("experts.experts.w2",)

    def __init__(self, config: CausalConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, WIDTH)
        self.layers = nn.ModuleList(CausalBlock(config.drop_tokens) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, config.vocab_size, bias=False)
        self.register_buffer("logit_scale", torch.ones(()))
        self.embedding.weight.requires_grad_(False)
        self.post_init()

    def _init_weights(self, module):
        initialize_module(module, self.config.initializer_range)

    def initialize_parameters(self) -> None:
        self.logit_scale.fill_(0.5)

    def logits(self, input_ids, attention_mask):
        """[B, L, V], and the reports of the routers."""
        x_BLD, reports = self.embedding(input_ids), []
        for layer in self.layers:
            x_BLD, report = layer(x_BLD, attention_mask.bool())
            reports.append(report)
        return self.head(self.norm(x_BLD)) * self.logit_scale, reports

    def forward(self, batch, fn=None):
        if fn is not None:
            return fn(self, batch)
        logits_BLV, reports = self.logits(**batch.inputs["text"])
        loss = token_losses(logits_BLV, batch).sum() / self.weight(batch).clamp(min=1)
        return StepOutput(loss, {"loss/tokens": loss.detach()}, {"text": reports})

    def weights_differ(self, batch):
        return True

    def weight(self, batch):
        return (labels(batch) != IGNORED).sum()

    def blocks(self):
        return list(self.layers)


def labels(batch: Batch) -> torch.Tensor:
    """The next token in each place, int64 [B, L], -100 where none is asked for."""
    if "labels" in batch.targets:
        return batch.targets["labels"]
    ids_BL, valid_BL = batch.inputs["text"]["input_ids"], batch.inputs["text"]["attention_mask"].bool()
    return F.pad(ids_BL.where(valid_BL, IGNORED)[:, 1:], (0, 1), value=IGNORED)


def token_losses(logits_BLV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of each place, [B, L]; 0 where nothing is asked for."""
    return F.cross_entropy(logits_BLV.transpose(1, 2).float(), labels(batch), ignore_index=IGNORED, reduction="none")


def build_causal(seed: int, ep_size: int, drop_tokens: bool) -> CausalModel:
    return build_module(CausalModel, CausalConfig(drop_tokens=drop_tokens), seed, ep_size)


def text_batch(step: int, size: int = 8) -> Batch:
    """The global batch of a step: texts of 2 to 10 tokens, and the last two without a token that is asked for."""
    draw = torch.Generator().manual_seed(step)
    length_B1 = torch.randint(2, LENGTH + 1, (size, 1), generator=draw)
    valid_BL = torch.arange(LENGTH) < length_B1
    ids_BL = torch.randint(1, WORDS, (size, LENGTH), generator=draw) * valid_BL
    labels_BL = torch.full_like(ids_BL, IGNORED)
    labels_BL[:, :-1] = torch.where(valid_BL[:, 1:], ids_BL[:, 1:], IGNORED)
    labels_BL[-2:] = IGNORED
    return Batch("text", {"text": {"input_ids": ids_BL, "attention_mask": valid_BL.long()}}, {"labels": labels_BL})
