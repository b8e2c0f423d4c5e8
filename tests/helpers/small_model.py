"""A small IMP model, and inputs of each modality for it.

Shapes: B batch, L tokens of an example, A axes of a position.
"""

import torch

from imp_ds import ImpConfig, ImpModel
from imp_ds.modalities.positions import grid_positions
from imp_ds.objectives import task_entry

SMALL = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vision_patch=(2, 4, 4),
    vision_max=(8, 32, 32), audio_patch=(4, 4), audio_max=(32, 16), vocab_size=50, text_max=64, common_dim=24,
)  # fmt: skip
EXPERTS = dict(num_experts=4, moe_layers="last:2", group_examples=1)


def small_config(**changes) -> ImpConfig:
    return ImpConfig(**{**SMALL, **changes})


def small_model(seed: int = 0, **changes) -> ImpModel:
    torch.manual_seed(seed)
    return ImpModel(small_config(**changes)).eval()


def clip_inputs(batch: int, steps: int, rows: int, columns: int, seed: int = 0) -> dict[str, torch.Tensor]:
    positions_LA = torch.from_numpy(grid_positions(steps, rows, columns))
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (batch, len(positions_LA), 2 * 4 * 4 * 3), dtype=torch.uint8, generator=generator)
    return {"pixel_values": pixels, "pixel_positions": positions_LA.expand(batch, -1, -1)}


def audio_inputs(batch: int, steps: int = 4, bands: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    positions_LA = torch.from_numpy(grid_positions(steps, bands))
    values = torch.randn(batch, len(positions_LA), 16, generator=torch.Generator().manual_seed(seed))
    return {"input_features": values, "feature_positions": positions_LA.expand(batch, -1, -1)}


def text_inputs(words: list[int], length: int, padding: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    """One row for each number of words, padded to `length`."""
    ids = torch.randint(1, 50, (len(words), 64), generator=torch.Generator().manual_seed(seed))[:, :length]
    valid_BL = torch.arange(length) < torch.tensor(words).unsqueeze(1)
    return {"input_ids": torch.where(valid_BL, ids, padding), "attention_mask": valid_BL.long()}


def assert_near(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


OBJECTIVES = {
    "image_text": task_entry([{"kind": "contrastive", "pairs": [["vision", "text"]]}]),
    "speech_text": task_entry([{"kind": "contrastive", "pairs": [["audio", "text"]]}]),
    "image_class": task_entry([{"kind": "classification", "modality": "vision", "num_classes": 3}]),
    "words": task_entry([{"kind": "masked_language", "rate": 0.15}]),
    "film": task_entry([
        {"kind": "contrastive", "pairs": [["vision", "text"], ["vision", "audio"]]},
        {"kind": "classification", "modality": "audio", "num_classes": 3},
    ]),
}  # fmt: skip
GATED = dict(num_experts=4, experts_per_token=2, moe_layers="last:2", objectives=OBJECTIVES)


IMAGE = clip_inputs(3, 1, 2, 2)  # four tokens
WORDS = text_inputs([5, 3, 1], 6)


def caption_mask() -> torch.Tensor:
    """Image, words, queries: all see the image; a word sees the words up to itself, a query those before it, and itself."""
    mask_LL = torch.zeros(16, 16, dtype=torch.bool)
    mask_LL[:, :4] = True
    mask_LL[4:10, 4:10] = torch.ones(6, 6).tril().bool()
    mask_LL[10:, 4:10] = torch.ones(6, 6).tril(-1).bool()
    mask_LL[10:, 10:] = torch.eye(6).bool()
    return mask_LL


def caption(model, words=WORDS, **changes):
    queries = {**words, "input_ids": torch.full_like(words["input_ids"], 49)}
    parts = [("vision", IMAGE, None), ("text", words, None), ("text", queries, None)]
    return model.encode_segments(parts, mask_LL=caption_mask(), **changes)


GROUPS = {**EXPERTS, "group_examples": None, "group_tokens": 512}
ROUTERS = {
    "expert choice": {},
    "top-1 with capacity": dict(router="top_k", experts_per_token=1),
    "top-2 with capacity": dict(router="top_k", experts_per_token=2, capacity_factor=0.5),
    "top-2 drop-free": dict(router="top_k", experts_per_token=2, drop_tokens=False),
    "linears, by context": dict(gate="context", conditional_linears=["up", "down"]),
}
