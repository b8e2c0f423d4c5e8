"""An encoder that starts from a published tower computes its hidden states; what it cannot take over is named.

The reference is transformers: tiny towers with random weights, biases, norms and LayerScale.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from imp_ds.errors import UserError
from imp_ds.families.imp.pretrained.loading import load_tower
from imp_ds.families.imp.pretrained.settings import pretrained_settings
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.upcycling import upcycle
from imp_ds.modalities.vision import patches
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.initialization import initialize_seeded

SHAPE = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
VISION = dict(**SHAPE, image_size=12, patch_size=4)
WIDE = dict(**VISION, intermediate_size=64)
TEXT = dict(**SHAPE, intermediate_size=64, vocab_size=50, max_position_embeddings=10, bos_token_id=1, eos_token_id=2)
MEAN, STD = [0.48, 0.45, 0.4], [0.27, 0.26, 0.28]
TOWERS = {
    "clip": lambda: CLIPModel(CLIPConfig(vision_config=WIDE, text_config=TEXT)),
    "clip_vision_model": lambda: CLIPVisionModel(CLIPVisionConfig(**WIDE, hidden_act="gelu")),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**WIDE)),
    "siglip2": lambda: Siglip2VisionModel(Siglip2VisionConfig(**SHAPE, intermediate_size=64, num_patches=9, patch_size=4)),
    "vit": lambda: ViTModel(ViTConfig(**WIDE)),
    "vit_classifier": lambda: ViTForImageClassification(ViTConfig(**WIDE, qkv_bias=False)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION, num_register_tokens=3)),
}


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            shift = 1.0 if "norm" in name and name.endswith("weight") or "lambda" in name else 0.0
            parameter.copy_(shift + spread * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(image_mean=MEAN, image_std=STD)))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save(randomize(TOWERS["clip"]()), tmp_path_factory.mktemp("clip"))


def encoder(folder: Path, **changes) -> ImpForPreTraining:
    """A fresh dense encoder with the settings of the folder's tower."""
    settings = pretrained_settings(str(folder), **{"vocab_size": 50, "common_dim": 16, **changes})
    model = ImpForPreTraining(ImpConfig(**settings)).eval()
    initialize_seeded(model, 0, 0.02)
    return model


def picture(size: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def ours(model, images_BHWC: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What leaves the last block, and what leaves the last norm."""
    config, size = model.config, images_BHWC.shape[1:3]
    inputs = patches.preprocess([image[None] for image in images_BHWC], 1, size, tuple(config.vision_patch))
    inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.no_grad():
        encoding = model.base_model.encode("vision", inputs, hidden_states=True)
    return encoding.hidden_states[-1], encoding.tokens_BLD


def theirs(model, images_BHWC: np.ndarray, **more) -> torch.Tensor:
    """last_hidden_state of the tower in transformers."""
    mean_C11, std_C11 = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    values = (torch.from_numpy(images_BHWC).permute(0, 3, 1, 2) / 255 - mean_C11) / std_C11
    model = getattr(model, "vision_model", getattr(model, "vit", model))
    if isinstance(model, Siglip2VisionModel):
        blocks = values.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 3, 5, 1)  # channels last
        shapes = torch.tensor([blocks.shape[1:3]] * len(values))
        mask = torch.ones(len(values), shapes[0].prod(), dtype=torch.int64)
        more = dict(pixel_attention_mask=mask, spatial_shapes=shapes)
        values = blocks.flatten(3).flatten(1, 2)
    with torch.no_grad():
        return model(values, **more).last_hidden_state


@pytest.mark.parametrize("kind", TOWERS)
def test_hidden_states_are_those_of_the_tower(kind, tmp_path):
    reference = randomize(TOWERS[kind]())
    model = encoder(save(reference, tmp_path))
    (line,), sources, report = load_tower(model, tmp_path)
    before_norm, after_norm = ours(model, picture())
    expected = theirs(reference, picture())
    found = before_norm if kind.startswith("clip") else after_norm  # CLIP norms its class token alone
    assert found.shape == expected.shape  # class token and registers too
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    exact = kind != "siglip2"  # whose tables are resized otherwise at other grids, which is said
    assert ("equal to its own" in line) == exact and sources == {}
    # all parameters are counted once
    assert sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:parameters|fresh)", line)) == model.num_parameters()
    for name, _ in reference.named_parameters():
        assert name.split(".")[-1] in report


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CLIPVisionConfig(**WIDE).to_dict()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(UserError, match="(?s)holds no weights.*pickled weights alone, which are never opened"):
        load_tower(ImpForPreTraining(ImpConfig.from_size("tiny")), tmp_path)


def test_an_upcycled_tower_still_computes_the_same(clip, tmp_path):
    """Top-k with copies and without dropped tokens is the dense model: experts have the folded biases and silu too."""
    dense = encoder(clip)
    load_tower(dense, clip)
    sparse = upcycle(dense, num_experts=4, moe_layers=[1, 2], router="top_k", experts_per_token=2, drop_tokens=False)
    assert sparse.config.expert_activation == "silu"
    torch.testing.assert_close(ours(sparse, picture())[1], ours(dense, picture())[1], atol=1e-5, rtol=1e-5)
    sparse.save_pretrained(tmp_path)
    again = ImpForPreTraining.from_pretrained(tmp_path).eval()
    expected = theirs(CLIPModel.from_pretrained(clip), picture())
    torch.testing.assert_close(ours(again, picture())[0], expected, atol=1e-5, rtol=1e-5)


def test_tables_are_resized_as_the_source_resizes_them(clip):
    model = encoder(clip, vision_max=[1, 20, 20])
    report = load_tower(model, clip).report
    reference = CLIPModel.from_pretrained(clip)
    expected = theirs(reference, picture(20), interpolate_pos_encoding=True)
    torch.testing.assert_close(ours(model, picture(20))[0], expected, atol=1e-5, rtol=1e-5)
    assert "resized from 3 x 3 to 5 x 5, bicubic" in report


def test_frames_of_a_patch_share_the_convolution(clip):
    """A still image meets their sum; a video of the same frame again and again is that image."""
    model = encoder(clip, vision_patch=[2, 4, 4], vision_max=[4, 12, 12])
    load_tower(model, clip)
    expected = theirs(CLIPModel.from_pretrained(clip), picture())
    torch.testing.assert_close(ours(model, picture())[0], expected, atol=1e-5, rtol=1e-5)
    clips = [np.repeat(image[None], 2, axis=0) for image in picture()]
    inputs = {name: torch.from_numpy(x) for name, x in patches.preprocess(clips, 2, (12, 12), (2, 4, 4)).items()}
    with torch.no_grad():
        still = model.base_model.encode("vision", inputs, hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(still, expected, atol=1e-5, rtol=1e-5)


def test_the_first_layers_are_taken_and_what_has_no_place_is_said(clip):
    lacking = dict(num_hidden_layers=2, block_biases=False, vision_registers=0, vision_positions="factored", hidden_act="gelu")
    model = encoder(clip, **lacking)
    (line,), _, report = load_tower(model, clip)
    assert "5 differences" in line
    assert "the first 2 of 3 layers are taken" in report and "--set 'model.block_biases=true'" in report
    unused = report.partition("Its own, unused")[2]
    assert "vision_model.encoder.layers.2.mlp.fc1.weight" in unused and "vision_model.encoder.layers.1.mlp.fc1.bias" in unused
    assert "vision_model.embeddings.class_embedding" in unused and "text_model.embeddings.token_embedding.weight" in unused
    fresh = report.partition("Fresh")[2].partition("##")[0]
    assert "imp.embeddings.vision.positions.tables.0.weight" in fresh and "imp.embeddings.audio.patch.weight" in fresh
    stored = load_file(clip / "model.safetensors")
    name = "vision_model.encoder.layers.1.self_attn.out_proj.weight"
    assert torch.equal(model.imp.blocks[1].attention.out.weight, stored[name])


@pytest.mark.parametrize("changes, message", [
    (dict(hidden_size=48), "model.hidden_size = 48 here, 32 there"),
    (dict(num_hidden_layers=4), "model.num_hidden_layers = 4 here, 3 there"),
    (dict(num_attention_heads=2), "model.num_attention_heads = 2 here, 4 there"),
    (dict(vision_patch=[1, 6, 6]), r"model.vision_patch = \[1, 6, 6\] here, \[1, 4, 4\] there"),
    (dict(qk_norm=True), "model.qk_norm = True here, False there"),
])  # fmt: skip
def test_other_shapes_are_refused_with_what_would_fit(clip, changes, message):
    model = encoder(clip, **changes)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=f"(?s){message}.*--set 'model.hidden_size=32' --set 'model.intermediate_size=64'"):
        load_tower(model, clip)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_experts_come_after(clip):
    with pytest.raises(UserError, match="(?s)only a dense encoder starts.*imp_ds upcycle RUN OUT --num_experts"):
        load_tower(encoder(clip, num_experts=2, moe_layers=[1]), clip)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_tower_of_texts(kind, tmp_path):
    """Equal to SigLIP's; to CLIP's where a token sees those before it alone, as there, and the report says that it does not."""
    reference = SiglipTextModel(SiglipTextConfig(**TEXT)) if kind == "siglip" else CLIPTextModel(CLIPTextConfig(**TEXT))
    randomize(reference).save_pretrained(tmp_path)
    model = encoder(tmp_path)
    (line,), _, report = load_tower(model, tmp_path)
    ids = torch.arange(3, 13)[None]
    mask_LL = None if kind == "siglip" else torch.ones(10, 10, dtype=torch.bool).tril()
    with torch.no_grad():
        found = model.base_model.encode_segments([("text", dict(input_ids=ids), None)], mask_LL=mask_LL).tokens_BLD
        torch.testing.assert_close(found, reference(ids).last_hidden_state, atol=1e-5, rtol=1e-5)
    assert ("equal to its own" in line) == (kind == "siglip") and ("from left to right" in report) == (kind == "clip")
    with pytest.raises(UserError, match="(?s)another vocabulary.*60 tokens here, 50 there.*data.tokenizer="):
        load_tower(encoder(tmp_path, vocab_size=60), tmp_path)


def test_other_models_are_refused_with_the_reason(tmp_path):
    for config, reason in (
        ({"model_type": "bert"}, "its norms stand behind the residual sums"),
        ({"model_type": "gpt2"}, "model_type gpt2"),
        (Dinov2Config(**VISION, use_swiglu_ffn=True).to_dict(), "its feed-forwards have a gate"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"(?s)no encoder here can start from this model.*{reason}.*clip, .*dinov2"):
            load_tower(ImpForPreTraining(ImpConfig.from_size("tiny")), tmp_path)


def test_a_damaged_folder_is_refused_before_anything_is_copied(clip, tmp_path):
    model = encoder(clip)
    before = {name: p.clone() for name, p in model.named_parameters()}
    stored = load_file(clip / "model.safetensors")
    del stored["vision_model.encoder.layers.2.mlp.fc2.weight"]
    (tmp_path / "config.json").write_text((clip / "config.json").read_text())
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"(?s)lacks weights.*layers.2.down.weight"):
        load_tower(model, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
