"""What preprocesses media for towers of each kind: shapes, grids, chunks, and how many tokens they become."""

import logging

import numpy as np
import pytest
from transformers import CLIPImageProcessorPil
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

from helpers.uni_moe_models import AST, CLIP, SIGLIP, VIDEOMAE, WHISPER
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.media import media_parts
from imp_ds.families.uni_moe.processor import media_tokens
from imp_ds.families.uni_moe.settings import ConnectorSettings, UniMoeSettings
from imp_ds.models.uni_moe import media_processors

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


def test_a_tower_whose_preprocessing_is_not_known_is_refused():
    with pytest.raises(UserError, match="preprocessed for this model is not known(.|\n)*preprocessor_config.json"):
        settings(image_tower={"model_type": "vit", "image_size": 16}).to_config(64, [])


@pytest.mark.parametrize("kind, tower", [("image", "resnet"), ("audio", "wav2vec2")])
def test_what_gives_no_tokens_of_such_media_is_no_tower(kind, tower):
    with pytest.raises(UserError, match=rf"model.{kind}_tower is no encoder of {kind}\n.*{tower}\n.*an exported IMP model"):
        settings(**{f"{kind}_tower": {"model_type": tower}}).to_config(64, [])


def test_a_saved_processor_of_images_comes_back_without_a_warning_of_what_is_not_needed(caplog, monkeypatch):
    """transformers warns once of torchvision where the class that needs it is asked for; ours is the one of PIL."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    made = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    fields = made.to_dict() | {"image_processor_type": "CLIPImageProcessor"}
    asked = []
    monkeypatch.setattr(
        media_processors, "get_image_processor_class_from_name",
        lambda name: asked.append(name) or get_image_processor_class_from_name(name),
    )  # fmt: skip
    assert type(media_processors.media_processor(fields)) is CLIPImageProcessorPil
    assert asked == ["CLIPImageProcessorPil"] and "torchvision" not in caplog.text
