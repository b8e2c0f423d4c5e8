"""A fresh process that knows only the exported folder argv[1]: writes embeddings of fixed inputs to argv[2], facts to stdout."""

import json
import sys

import numpy as np


def make_raw() -> dict:
    """Four images, four videos, four recordings and four texts."""
    draw = np.random.default_rng(3)
    images = draw.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    films = draw.integers(0, 256, (4, 8, 64, 64, 3), dtype=np.uint8)
    times = np.arange(16000) / 16000
    waveforms = [np.sin(2 * np.pi * f * times).astype(np.float32) for f in (200, 400, 900, 1500)]
    return dict(
        images=list(images), films=list(films), waveforms=waveforms, texts=["one", "the digit two", "three moves left", "4"],
    )


def make_inputs(processor) -> list:
    """Two sets of model inputs: images with recordings and texts, and videos."""
    raw = make_raw()
    first = processor(images=raw["images"], audio=raw["waveforms"], text=raw["texts"], sampling_rate=16000, max_length=16)
    return [first, processor(videos=raw["films"])]


def embed(model, inputs: list) -> dict:
    """{"0/vision_to_text": [B, C], ...}"""
    import torch

    found = {}
    with torch.no_grad():
        for number, given in enumerate(inputs):
            for name, vectors in model(**given).embeddings.items():
                found[f"{number}/{name}"] = vectors.contiguous()
    return found


def main(folder: str, out: str) -> None:
    from pathlib import Path

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoProcessor

    import imp_ds

    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = make_inputs(processor)
    expected = embed(model, inputs)
    save_file(expected, out)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    cases = {
        "class": (imp_ds.ImpModel, {}),
        "cpu": (AutoModel, dict(device_map="cpu")),
        "auto": (AutoModel, dict(device_map="auto")),
        # a device that holds half of the model: the rest lies in files and is fetched when it is called
        "split": (
            AutoModel,
            dict(device_map="auto", max_memory={"cpu": size // 2}, offload_folder=str(Path(out).parent / "offload")),
        ),
    }
    facts = {
        "training": model.training,
        "classes": [type(model).__name__, type(processor).__name__],
        "differences": {},
        "devices": {},
    }
    for name, (kind, settings) in cases.items():
        loaded = kind.from_pretrained(folder, **settings)
        found = embed(loaded, inputs)
        facts["differences"][name] = max((found[key] - expected[key]).abs().max().item() for key in expected)
        facts["devices"][name] = sorted({str(d) for d in getattr(loaded, "hf_device_map", {}).values()})
    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    facts["missing"] = sorted(report["missing_keys"])
    facts["deepspeed"] = "deepspeed" in sys.modules
    facts["finite"] = all(torch.isfinite(x).all().item() for x in expected.values())
    print("FACTS " + json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
