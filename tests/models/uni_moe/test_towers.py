"""Towers through the Auto classes and our own exported encoder: what they give, and that frozen ones stay as they are."""

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from helpers.uni_moe_models import AST, CLIP, SIGLIP, VIDEOMAE, WHISPER, imp_config
from imp_ds.errors import UserError
from imp_ds.models.uni_moe.towers import Tower


def made(fields, feature_layer=-1) -> Tower:
    torch.manual_seed(0)
    config = fields if not isinstance(fields, dict) else AutoConfig.for_model(**fields)
    return Tower(config, feature_layer).eval()


@pytest.mark.parametrize(
    "fields, kind, shape, tokens",
    [
        (CLIP, "image", (3, 16, 16), 16), (SIGLIP, "image", (3, 16, 16), 16), (VIDEOMAE, "video", (4, 3, 16, 16), 32),
        (CLIP, "video", (5, 3, 16, 16), 16), (WHISPER, "audio", (8, 40), 20), (AST, "audio", (32, 16), 8),
    ],
    ids=["clip", "siglip", "videomae", "frames", "whisper", "ast"],
)  # fmt: skip
def test_tokens_of_each_kind_of_tower(fields, kind, shape, tokens):
    """CLIP: (16 / 4)^2 patches without the class; VideoMAE: 2 tubes of 16; Whisper: 40 frames by 2; AST: 4 x 2 patches."""
    tower = made(fields)
    assert tower(kind, torch.randn(2, *shape)).shape == (2, tokens, tower.width)


def test_a_video_is_the_mean_over_its_frames():
    tower, frames = made(CLIP), torch.randn(1, 4, 3, 16, 16)
    expected = torch.stack([tower("image", frames[:, t]) for t in range(4)]).mean(0)
    torch.testing.assert_close(tower("video", frames), expected)


def test_the_layer_before_the_last_is_read_as_published():
    tower, images = made(CLIP, -2), torch.randn(2, 3, 16, 16)
    expected = tower.model(pixel_values=images, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(tower("image", images), expected)


def test_our_encoder_reads_all_three():
    tower = made(imp_config())
    grid = torch.tensor([[0.0, h / 4, w / 4] for h in range(4) for w in range(4)])[None]
    image = tower("image", torch.randn(1, 16, 2 * 4 * 4 * 3), grid)
    assert image.shape == (1, 16, 32)
    expected = tower.model.encode("audio", {"input_features": torch.zeros(1, 8, 16), "feature_positions": torch.zeros(1, 8, 2)})
    torch.testing.assert_close(tower("audio", torch.zeros(1, 8, 16), torch.zeros(1, 8, 2)), expected.tokens_BLD)


def test_a_frozen_tower_stays_in_eval_and_keeps_nothing():
    tower = made(WHISPER).requires_grad_(False).train()
    assert not tower.model.training and not tower("audio", torch.randn(1, 8, 40)).requires_grad
    tower = made(WHISPER).train()
    assert tower.model.training and tower("audio", torch.randn(1, 8, 40)).requires_grad


class OddConfig(PreTrainedConfig):
    model_type = "odd"


def test_no_such_encoder():
    with pytest.raises(UserError, match="no encoder of this model_type"):
        Tower(OddConfig())
