"""Audio: log-mel spectrograms, cut into patches of time x mel bins (IMP, section 3.1).

Shapes: B batch, L tokens of an example, P raw values of a patch (frames * mel bins), D width.
"""

import torch
from torch import nn

from imp_ds.modalities.positions import FactoredPositions

INPUT_NAMES = ("input_features", "feature_positions")


class AudioEmbedding(nn.Module):
    """Spectrogram patches and their coordinates to tokens.

    forward takes `input_features`, [B, L, P] float, and `feature_positions`, [B, L, 2] (time, frequency) in [0, 1);
    it returns tokens [B, L, D] and None: no token is padding.
    """

    def __init__(self, config):
        super().__init__()
        frames, bins = config.audio_patch
        self.patch = nn.Linear(frames * bins, config.hidden_size)
        buckets = [largest // patch for largest, patch in zip(config.audio_max, config.audio_patch)]
        self.positions = FactoredPositions(buckets, config.hidden_size, config.layer_norm_eps)

    def forward(self, input_features: torch.Tensor, feature_positions: torch.Tensor):
        values = input_features.to(self.patch.weight.dtype)
        return self.patch(values) + self.positions(feature_positions).to(values.dtype), None
