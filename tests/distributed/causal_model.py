"""A second kind of model for the engine: a two-layer causal MoE language model, whose loss is a mean over tokens.

Its embedding is frozen, and its logits are scaled by a persistent buffer. Shapes: B texts, L tokens, D width, V words.
"""

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.families.train_module import StepOutput, TrainModule
from imp_ds.models.initialization import initialize_seeded
from imp_ds.moe.layer import MoELayer
from imp_ds.parallel.expert_parallel import spread_experts
from imp_ds.parallel.groups import rank
from imp_ds.tasks import Batch

WORDS, WIDTH, HEADS, EXPERTS, LENGTH, IGNORED = 20, 16, 2, 4, 10, -100


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


class CausalModel(TrainModule):
    """targets["labels"], int64 [B, L]: the next token, -100 where none is asked for."""

    def __init__(self, drop_tokens: bool):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(CausalBlock(drop_tokens) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.register_buffer("logit_scale", torch.ones(()))

    def initialize_parameters(self) -> None:
        self.logit_scale.fill_(0.5)

    def forward(self, batch, fn=None):
        if fn is not None:
            return fn(self, batch)
        ids_BL, valid_BL = batch.inputs["text"]["input_ids"], batch.inputs["text"]["attention_mask"].bool()
        x_BLD, reports = self.embedding(ids_BL), []
        for layer in self.layers:
            x_BLD, report = layer(x_BLD, valid_BL)
            reports.append(report)
        logits_BLV = self.head(self.norm(x_BLD)) * self.logit_scale
        asked = dict(ignore_index=IGNORED, reduction="sum")
        total = F.cross_entropy(logits_BLV.flatten(0, 1), batch.targets["labels"].flatten(), **asked)
        loss = total / self.weight(batch).clamp(min=1)
        return StepOutput(loss, {"loss/tokens": loss.detach()}, {"text": reports})

    def weights_differ(self, batch):
        return True

    def weight(self, batch):
        return (batch.targets["labels"] != IGNORED).sum()

    def blocks(self):
        return list(self.layers)


def build_causal(seed: int, ep_size: int, drop_tokens: bool) -> CausalModel:
    with torch.device("meta"):
        model = CausalModel(drop_tokens)
    if ep_size > 1:
        spread_experts(model, ep_size, rank())
    model.to_empty(device="cpu")
    initialize_seeded(model, seed, 0.02)
    model.embedding.weight.requires_grad_(False)
    return model


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
