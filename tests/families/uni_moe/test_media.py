"""What preprocesses media for towers of each kind: shapes, grids, chunks, and how many tokens they become."""

import numpy as np
import pytest

from helpers.uni_moe_models import AST, CLIP, SIGLIP, VIDEOMAE, WHISPER
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.media import media_parts
from imp_ds.families.uni_moe.processor import media_tokens
from imp_ds.families.uni_moe.settings import ConnectorSettings, UniMoeSettings

LANGUAGE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
IMP = {
    "model_type": "imp", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vision_patch": [2, 8, 8], "vision_max": [4, 16, 32], "audio_patch": [16, 16], "audio_max": [64, 32], "num_experts": 0,
}  # fmt: skip


def settings(**parts) -> UniMoeSettings:
    return UniMoeSettings(language_model=LANGUAGE, **parts)


@pytest.mark.parametrize(
    "kind, tower, shape, tokens",
    [
        ("image", CLIP, [3, 16, 16], 16), ("image", SIGLIP, [3, 16, 16], 16), ("video", VIDEOMAE, [4, 3, 16, 16], 32),
        ("audio", AST, [32, 16], 8), ("audio", WHISPER, [8, 40], 20),
    ],
    ids=["clip", "siglip", "videomae", "ast", "whisper"],
)  # fmt: skip
def test_shapes_and_tokens_by_the_configuration_alone(kind, tower, shape, tokens):
    tower = tower | {"max_source_positions": 50} if tower is WHISPER else tower  # a second: shorter chunks are rounded up
    if tower["model_type"] == "whisper":
        shape, tokens = [8, 100], 50
    run = settings(**{f"{kind}_tower": tower})
    config = run.to_config(64, [])
    assert list(config.media_shapes[kind].values()) == [shape]
    assert media_tokens(config) == {kind: tokens}


def test_our_encoder_reads_all_three_on_the_grids_of_its_patches():
    """Images of 16 x 32 by 8 x 8; videos of 4 frames by 2 besides; 64 frames by 32 mels in patches of 16 x 16."""
    run = settings(image_tower=IMP, video_tower=IMP, audio_tower=IMP, video_connector=ConnectorSettings(pool=[2, 1, 2]))
    config = run.to_config(64, [])
    assert config.grids == {"image": [2, 4], "video": [2, 2, 4], "audio": [4, 2]}
    assert config.towers == {"image": "vision", "video": "vision", "audio": "vision"} and config.audio_config is None
    assert media_tokens(config) == {"image": 8, "video": 4, "audio": 8}
    assert run.media().frames == 4


def test_kinds_of_one_tower_share_it_and_others_do_not():
    run = settings(image_tower=CLIP, video_tower=CLIP, audio_tower=AST, frames=6)
    assert run.to_config(64, []).towers == {"image": "vision", "video": "vision", "audio": "audio"}
    made = run.media()
    assert made.video_processor is None and made.frames == 6 and made.shapes["video"]["pixel_values_videos"] == [6, 3, 16, 16]
    assert settings(image_tower=CLIP, video_tower=VIDEOMAE).to_config(64, []).towers == {"image": "vision", "video": "video"}


def test_a_chunk_of_audio_is_what_the_tower_reads_at_once():
    assert media_parts({"audio": AST}, 8).chunk_seconds == pytest.approx(0.32)  # 32 frames of 10 ms
    extractor = media_parts({"audio": IMP}, 8).feature_extractor
    assert extractor.seconds * extractor.sampling_rate == pytest.approx(64 * extractor.transform.hop_length)
    assert np.isclose(media_parts({"audio": IMP}, 8).chunk_seconds, extractor.seconds)


@pytest.mark.parametrize("kind, tower", [("image", {"model_type": "resnet"}), ("audio", {"model_type": "wav2vec2"})])
def test_a_tower_whose_preprocessing_is_not_known_is_refused(kind, tower):
    with pytest.raises(UserError, match="preprocessed for this model is not known") as caught:
        settings(**{f"{kind}_tower": tower | ({"image_size": 16} if kind == "image" else {})}).to_config(64, [])
    assert "preprocessor_config.json" in str(caught.value)
