"""Linear layers in 8 and 4 bits, as quantizers of transformers put them in the place of every nn.Linear.

Shapes: B batch, O outputs and I inputs of a linear layer.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

from helpers.small_model import clip_inputs, small_model, text_inputs
from imp_ds.objectives import task_entry

# 4 bits have one scale for 64 weights, so that all inputs are multiples of 64
WIDE = dict(hidden_size=64, intermediate_size=128, common_dim=64, audio_patch=(8, 8), audio_max=(64, 32))
KINDS = {
    "dense": {},
    "experts": dict(num_experts=4, moe_layers="last:2"),
    "attributes": dict(num_experts=4, moe_layers="all", gate="attribute", objectives={"t": task_entry([
        {"kind": "contrastive", "pairs": [["vision", "text"], ["audio", "text"]], "positives": "diagonal"}])}),
}  # fmt: skip


def inputs_of_all() -> dict[str, torch.Tensor]:
    pictures = clip_inputs(2, 1, 4, 4)
    pictures["pixel_values"] = pictures["pixel_values"][..., :48]  # one frame, of two in a patch
    return {**pictures, **text_inputs([5, 8], 9), "input_features": torch.randn(2, 8, 64)}


class Int8Linear(nn.Module):
    """A linear layer of integers and a scale for each output, in the way of most quantizers: `weight` is int8 [O, I]."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale_O1 = linear.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-9) / 127
        self.weight = nn.Parameter((linear.weight / self.scale_O1).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_floating_point()
        return F.linear(x, self.weight * self.scale_O1, self.bias)


def replace_linear(module: nn.Module) -> int:
    """Every nn.Linear becomes an Int8Linear; how many there were."""
    found = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
            found += 1
        else:
            found += replace_linear(child)
    return found


def least_likeness(model, quantized, task) -> float:
    """The least cosine of what both make of the same inputs, over all modalities and projections."""
    inputs = inputs_of_all()
    with torch.no_grad():
        full, rough = (m(**inputs, task=task) for m in (model, quantized))
    pooled = [(full[f"{m}_pooled"], rough[f"{m}_pooled"]) for m in ("vision", "audio", "text")]
    pairs = pooled + [(vectors, rough.embeddings[name]) for name, vectors in full.embeddings.items()]
    return min(F.cosine_similarity(a, b.float()).min().item() for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantizer_finds_the_linear_layers_and_the_model_runs(kind):
    torch.manual_seed(0)
    model, quantized = (small_model(**WIDE, **KINDS[kind]) for _ in range(2))
    assert replace_linear(quantized) >= 1 + 6 + 12 + 6  # sounds' patches, before and after the encoder, projections, layers
    assert quantized.embeddings["vision"].patch.weight.dtype == torch.float32  # pictures' patches know frames
    assert least_likeness(model, quantized, "t" if kind == "attributes" else None) > 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits, likeness", [(8, 0.99), (4, 0.9)])
def test_bitsandbytes(kind, bits, likeness, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    model = small_model(**WIDE, **KINDS[kind])
    model.save_pretrained(tmp_path)
    how = dict(load_in_8bit=True) if bits == 8 else dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    if kind == "attributes":
        how["llm_int8_skip_modules"] = ["embedding.linear"]  # 11 attributes: on a CPU 4 bits want an even number of inputs
    quantized = AutoModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**how), dtype=torch.float32).eval()
    kinds = {8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}
    assert isinstance(quantized.blocks[0].attention.qkv, kinds[bits])
    assert least_likeness(model, quantized, "t" if kind == "attributes" else None) > likeness
