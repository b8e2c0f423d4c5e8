"""All next tokens of a caption in one pass: the query construction of Uni-Perceiver (arXiv 2112.01522; release,
`modeling/encoder/unified_bert_encoder.py`).

    <SPE>, input | tokens | queries

A query is <SPE>, too: the mask token, which stands for what is asked for. Everyone sees the first <SPE> and the input, which see
nothing else. A token sees the tokens up to itself. Query i has the position of token i and sees the tokens before it,
and itself, but no other query: from its state token i is found. So it is in training, for all tokens at once, and in generation,
where the one query is that of the next token.

Several captions of one input may stand side by side. None sees another one, so the input is encoded once for all of them.

Shapes: B samples, K captions of each, W tokens of a caption, Q queries of a caption, S tokens of <SPE> and input,
L = S + K * (W + Q), D width.
"""

from typing import NamedTuple

import torch

from imp_ds.errors import UserError
from imp_ds.modalities import get_modality
from imp_ds.models.imp.likelihood import spe_inputs
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel
from imp_ds.moe.routing import Condition


class ConditioningPrefix(NamedTuple):
    """What captions are conditioned on: its modality, its inputs, and the conditions of it (and <SPE>) and of the caption."""

    modality: str
    inputs: dict[str, torch.Tensor]
    condition: Condition
    text_condition: Condition


def encode_captions(
    model: ImpModel, prefix: ConditioningPrefix, ids_BKW: torch.Tensor, token_positions: range,
    valid_BKQ: torch.Tensor | None = None, key_B: torch.Tensor | None = None,
) -> Encoding:  # fmt: skip
    """The whole sequence through the encoder; `query_states` are what it is read for.

    Args:
        ids_BKW: the token ids of each caption from the first on, int64; all that the queries are to see.
        token_positions: of the queries in their captions.
        valid_BKQ: False at padding, of tokens and queries alike, where there is a query for each token; None: there is none.
        key_B: the samples' random keys.

    Raises UserError for a caption that is longer than the model's texts, and a model that knows no <SPE>.
    """
    batch, captions, tokens = ids_BKW.shape
    device, queries = ids_BKW.device, len(token_positions)
    if token_positions.stop > model.config.text_max:
        allowed = f"at most text_max = {model.config.text_max}"
        raise UserError("a caption is longer than the model's texts", got=f"{token_positions.stop} tokens", allowed=allowed)
    spe = spe_inputs(model.config, batch, device)
    valid = {} if valid_BKQ is None else dict(attention_mask=valid_BKQ.flatten(1))
    position_W = torch.arange(tokens, device=device).repeat(captions)
    position_Q = torch.arange(token_positions.start, token_positions.stop, device=device).repeat(captions)
    parts = [("text", spe, prefix.condition), (prefix.modality, prefix.inputs, prefix.condition)]
    if tokens:
        parts.append(("text", dict(input_ids=ids_BKW.flatten(1), token_positions=position_W, **valid), prefix.text_condition))
    queries_BL = spe["input_ids"].expand(batch, captions * queries)
    parts.append(("text", dict(input_ids=queries_BL, token_positions=position_Q, **valid), prefix.text_condition))
    read = get_modality(prefix.modality)
    seen = 1 + read.registers(model.config) + prefix.inputs[read.inputs[0]].shape[1]
    return model.encode_segments(parts, key_B, caption_mask(seen, captions, position_W, position_Q))


def query_states(encoding: Encoding, captions: int = 1) -> torch.Tensor:
    """The states from which the queries' tokens are found, [B, K, Q, D], of the encoding of `captions` captions side by side."""
    return encoding.tokens_BLD[:, -encoding.lengths[-1] :].unflatten(1, (captions, -1))


def caption_mask(seen: int, captions: int, position_W: torch.Tensor, position_Q: torch.Tensor) -> torch.Tensor:
    """Who sees whom, bool [L, L], True where the row's token sees the column's.

    Args:
        seen: S.
        captions: K.
        position_W, position_Q: of all tokens, [K * W], and of all queries, [K * Q], in their captions.
    """
    tokens, queries = len(position_W), len(position_Q)
    of_captions = torch.arange(captions, device=position_Q.device)
    caption_W = of_captions.repeat_interleave(tokens // captions)
    caption_Q = of_captions.repeat_interleave(queries // captions)
    before = lambda caption, limit: (caption[:, None] == caption_W) & (position_W < limit[:, None])  # noqa: E731
    mask_LL = torch.zeros(seen + tokens + queries, seen + tokens + queries, dtype=torch.bool, device=position_Q.device)
    mask_LL[:, :seen] = True
    mask_LL[seen : seen + tokens, seen : seen + tokens] = before(caption_W, position_W + 1)
    mask_LL[seen + tokens :, seen : seen + tokens] = before(caption_Q, position_Q)
    mask_LL[seen + tokens :, seen + tokens :].fill_diagonal_(True)
    return mask_LL
