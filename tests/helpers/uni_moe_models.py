"""Tiny models of Uni-MoE with random weights: towers of several kinds around the language models of `helpers.language_models`."""

import torch
from transformers import AutoConfig

from helpers.language_models import SIZES, SPARSE
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.uni_moe import UniMoeConfig, UniMoeForConditionalGeneration

IMAGE, VIDEO, AUDIO = 34, 35, 36  # placeholders
CLIP = dict(
    model_type="clip_vision_model", hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    image_size=16, patch_size=4,
)  # fmt: skip
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}
VIDEOMAE = CLIP | {"model_type": "videomae", "num_frames": 4, "tubelet_size": 2}
WHISPER = dict(
    model_type="whisper", d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=8,
    max_source_positions=20, decoder_layers=1, decoder_attention_heads=2, vocab_size=4, pad_token_id=0, bos_token_id=1,
    eos_token_id=1, decoder_start_token_id=1,
)  # fmt: skip
AST = dict(
    model_type="audio-spectrogram-transformer", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    patch_size=8, frequency_stride=8, time_stride=8, max_length=32, num_mel_bins=16,
)  # fmt: skip
MEDIA = {"image": (3, 16, 16), "video": (4, 3, 16, 16), "audio": (8, 40)}  # of CLIP or SigLIP, frames of them, and Whisper
TOKENS = {"image": 4, "video": 4, "audio": 5}


def imp_config() -> ImpConfig:
    return ImpConfig.from_size(
        "tiny", vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        vision_patch=[2, 4, 4], vision_max=[4, 16, 16], audio_patch=[4, 4], audio_max=[16, 8], text_max=8, num_experts=0,
    )  # fmt: skip


def uni_moe_config(language: str = "llama", **changes) -> UniMoeConfig:
    """Images and videos by CLIP, audio by Whisper."""
    text = AutoConfig.for_model(
        language, **SIZES | SPARSE.get(language, {}) | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    )
    experts = {"num_experts": 4, "norm_topk_prob": getattr(text, "norm_topk_prob", True)} if language in SPARSE else {}
    connectors = {"image": {"kind": "mlp2x_gelu", "pool": 2}, "video": {"kind": "linear", "pool": [2, 2]},
                  "audio": {"kind": "decoder", "queries": 5}}  # fmt: skip
    given = dict(
        text_config=text, vision_config=CLIP, audio_config=WHISPER, connectors=connectors, image_token_id=IMAGE,
        video_token_id=VIDEO, audio_token_id=AUDIO,
    )  # fmt: skip
    return UniMoeConfig(**given | experts | changes)


def uni_moe(language: str = "llama", seed: int = 0, **changes) -> UniMoeForConditionalGeneration:
    """A fresh one in eval mode, float32."""
    torch.manual_seed(seed)
    return UniMoeForConditionalGeneration(uni_moe_config(language, **changes)).eval()


def media(kind: str, count: int, seed: int = 0) -> torch.Tensor:
    """So many media of a kind, [N, ...]."""
    return torch.randn(count, *MEDIA[kind], generator=torch.Generator().manual_seed(seed))
