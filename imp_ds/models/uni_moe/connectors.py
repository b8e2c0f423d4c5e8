"""Connectors: from the tokens of a tower to those of the language model; one for each kind of media.

linear, mlp2x_gelu   each token by itself, after pooling over the tower's grid (LLaVA 1.5, arXiv 2310.03744)
qformer              queries that cross-attend the tower's tokens (BLIP-2, arXiv 2301.12597, section 3)
decoder              the same by Whisper's decoder, whose queries stand where its token embeddings would (Uni-MoE's release)

Shapes: N media, L tokens of the tower, M tokens of the language model, S width of the tower, D width of the language model.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Blip2QFormerConfig, WhisperConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from imp_ds.errors import UserError

QUERY_STD = 0.02  # queries of zeros would all be the same query for ever: no dropout, no position tells them apart
HEAD_WIDTH = 64


def build_connector(tower_width: int, width: int, grid: list[int] | None = None, *, kind: str, **options) -> nn.Module:
    """A module [N, L, S] -> [N, M, D].

    Args:
        grid: sizes of the axes of the tower's tokens; None: a square, or else one axis.
        kind: "linear", "mlp2x_gelu", "qformer", "decoder".
        options: pool (of the first two): tokens that become one, on each axis of the grid. queries, depth, heads, width (of the
            other two): how many queries, layers and heads, and how wide they are.

    Raises UserError for options that the kind does not have.
    """
    classes = {"linear": Linear, "mlp2x_gelu": MLP, "qformer": QFormer, "decoder": DecoderQFormer}
    try:
        made = classes[kind]
        return (
            made(tower_width, width, grid, **options) if kind in ("linear", "mlp2x_gelu") else made(tower_width, width, **options)
        )
    except TypeError as error:
        raise UserError(f"the connector {kind} has no such option", got=error, allowed=build_connector.__doc__) from None


class _Pooled(nn.Module):
    """Averages over neighbours on the tower's grid."""

    def __init__(self, grid: list[int] | None, pool: int | list[int]):
        super().__init__()
        self.grid, self.pool = grid, pool

    def pooled(self, x_NLS: torch.Tensor) -> torch.Tensor:
        """[N, L, S] -> [N, M, S]. Raises UserError for a pool that does not divide the grid."""
        length = x_NLS.shape[1]
        if self.pool == 1:
            return x_NLS
        side = math.isqrt(length)
        grid = self.grid or ([side, side] if side * side == length else [length])
        pool = [self.pool] * len(grid) if isinstance(self.pool, int) else list(self.pool)
        if len(pool) != len(grid) or math.prod(grid) != length or any(b < 1 or a % b for a, b in zip(grid, pool)):
            raise UserError(
                "the connector's pool does not divide the grid of the tower", got=f"{pool}", allowed=f"{grid}, {length} tokens"
            )
        shape = [n for size, step in zip(grid, pool) for n in (size // step, step)]
        steps = [2 + 2 * axis for axis in range(len(grid))]
        return x_NLS.reshape(len(x_NLS), *shape, -1).mean(dim=steps).flatten(1, -2)


class Linear(_Pooled):
    """One linear layer."""

    def __init__(self, tower_width: int, width: int, grid, pool=1):
        super().__init__(grid, pool)
        self.projection = nn.Linear(tower_width, width)

    def forward(self, x_NLS: torch.Tensor) -> torch.Tensor:
        return self.projection(self.pooled(x_NLS))


class MLP(_Pooled):
    """Two linear layers with GELU between them."""

    def __init__(self, tower_width: int, width: int, grid, pool=1):
        super().__init__(grid, pool)
        self.up, self.down = nn.Linear(tower_width, width), nn.Linear(width, width)

    def forward(self, x_NLS: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(self.pooled(x_NLS))))


class _Queries(nn.Module):
    """Learned queries, distinct from the start."""

    def __init__(self, queries: int, width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))

    def initialize_parameters(self) -> None:
        nn.init.normal_(self.queries, std=QUERY_STD)
        for part in self.children():
            if hasattr(part, "_init_weights"):
                part.apply(part._init_weights)

    def expanded(self, x_NLS: torch.Tensor) -> torch.Tensor:
        return self.queries.to(x_NLS.dtype).expand(len(x_NLS), -1, -1)


def _heads(width: int, heads: int | None) -> int:
    """Attention heads: those that are asked for, or of about HEAD_WIDTH. Raises UserError where they do not divide the width."""
    if heads is None:
        return next(count for count in range(max(1, width // HEAD_WIDTH), 0, -1) if width % count == 0)
    if width % heads:
        raise UserError("a connector's heads do not divide its width", got=f"heads = {heads}", allowed=f"a divisor of {width}")
    return heads


class QFormer(_Queries):
    """BLIP-2's Q-former: self-attention among the queries, cross-attention to the tower in every `cross_every`-th layer."""

    def __init__(self, tower_width: int, width: int, queries: int = 32, depth: int = 2, heads: int | None = None,
                 hidden: int | None = None, cross_every: int = 1):  # fmt: skip
        hidden = tower_width if hidden is None else hidden
        super().__init__(queries, hidden)
        config = Blip2QFormerConfig(
            hidden_size=hidden, num_hidden_layers=depth, num_attention_heads=_heads(hidden, heads),
            intermediate_size=4 * hidden, encoder_hidden_size=tower_width, cross_attention_frequency=cross_every,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.qformer = Blip2QFormerModel(config)
        self.projection = nn.Linear(hidden, width)

    def forward(self, x_NLS: torch.Tensor) -> torch.Tensor:
        answer = self.qformer(query_embeds=self.expanded(x_NLS), encoder_hidden_states=x_NLS)
        return self.projection(answer.last_hidden_state)


class DecoderQFormer(_Queries):
    """Whisper's decoder with queries in place of its tokens. It is causal: a query sees those before it."""

    def __init__(self, tower_width: int, width: int, queries: int = 50, depth: int = 2, heads: int | None = None):
        super().__init__(queries, tower_width)
        config = WhisperConfig(
            d_model=tower_width, decoder_layers=depth, decoder_attention_heads=_heads(tower_width, heads),
            decoder_ffn_dim=4 * tower_width, max_target_positions=max(448, queries), vocab_size=2, pad_token_id=0,
            bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, dropout=0.0,
        )  # fmt: skip
        self.decoder = WhisperDecoder(config)
        self.decoder.embed_tokens = nn.Identity()  # no token is ever looked up
        self.projection = nn.Linear(tower_width, width)

    def forward(self, x_NLS: torch.Tensor) -> torch.Tensor:
        queries_NMS = self.expanded(x_NLS)
        # given as it is, since transformers would look into the positions to make it, and wait for the device
        later_MM = torch.ones(queries_NMS.shape[1], queries_NMS.shape[1], dtype=torch.bool, device=x_NLS.device).triu(1)
        mask_MM = torch.zeros_like(later_MM, dtype=x_NLS.dtype).masked_fill(later_MM, torch.finfo(x_NLS.dtype).min)
        answer = self.decoder(
            inputs_embeds=queries_NMS, attention_mask=mask_MM.expand(len(x_NLS), 1, -1, -1), encoder_hidden_states=x_NLS,
            use_cache=False,
        )  # fmt: skip
        return self.projection(answer.last_hidden_state)
