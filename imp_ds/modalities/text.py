"""Text: token ids of any Hugging Face tokenizer, padded to the longest text that a task allows.

Shapes: B batch, L tokens of an example, D width.
"""

import torch
from torch import nn

from imp_ds.modalities.positions import FactoredPositions

INPUT_NAMES = ("input_ids", "attention_mask")


class TextEmbedding(nn.Module):
    """Token ids to tokens. forward takes `input_ids` [B, L] and `attention_mask` [B, L] (1 = a word, 0 = padding).

    Positions are scaled by the longest text, not by this one, so that a word's place reads the same bucket at any length.
    """

    def __init__(self, config):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = FactoredPositions([config.text_max], config.hidden_size, config.layer_norm_eps)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None):
        length, longest = input_ids.shape[1], self.positions.buckets[0]
        places = torch.arange(length, device=input_ids.device, dtype=torch.float32) / longest
        tokens = self.words(input_ids) + self.positions(places.view(1, length, 1)).to(self.words.weight.dtype)
        return tokens, None if attention_mask is None else attention_mask.bool()
