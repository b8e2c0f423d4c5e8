"""Vision: an image is a clip of one step, a film a clip of several; both are 3-D patches (IMP, section 3.1; VATT).

Shapes: B batch, L tokens of an example, P raw values of a patch (frames * height * width * channels), D width.
"""

import torch
from torch import nn

from imp_ds.modalities.positions import FactoredPositions

INPUT_NAMES = ("pixel_values", "pixel_positions")


class VisionEmbedding(nn.Module):
    """Patches and their coordinates to tokens.

    forward takes `pixel_values`, [B, L, P] uint8 in 0..255 (or float, already in [-1, 1]), and `pixel_positions`,
    [B, L, 3] (time, height, width) in [0, 1); it returns tokens [B, L, D] and None: no token is padding.
    """

    def __init__(self, config):
        super().__init__()
        frames, height, width = config.vision_patch
        self.patch = nn.Linear(frames * height * width * config.num_channels, config.hidden_size)
        buckets = [largest // patch for largest, patch in zip(config.vision_max, config.vision_patch)]
        self.positions = FactoredPositions(buckets, config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor, pixel_positions: torch.Tensor):
        values = pixel_values.to(self.patch.weight.dtype)
        if not pixel_values.is_floating_point():
            values = values / 127.5 - 1.0
        return self.patch(values) + self.positions(pixel_positions).to(values.dtype), None
