"""docs/models.md: each example of the processor works and gives what it says, and each keyword has a line and an example."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from helpers.media_files import write_video
from imp_ds import ImpProcessor
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.keywords import GROUPS
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()
SECTION = PAGE.partition("## The processor\n")[2].partition("\n## ")[0]
EXAMPLES = SECTION.partition("```python\n")[2].partition("```")[0].splitlines()
NAMES = sorted({name for names in GROUPS.values() for name in names})


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the page's examples name, in a folder of its own."""
    folder, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    samples = np.sin(np.arange(8000) / 7).astype(np.float32) / 2
    Image.fromarray(picture).save(folder / "photo.jpg")
    soundfile.write(folder / "tone.wav", samples, 16000)
    write_video(folder / "video.mp4", rng.integers(0, 256, (16, 32, 48, 3), dtype=np.uint8), samples[None])
    processor = ImpProcessor(
        ImpImageProcessor(size=32, patch=(2, 8, 8)),
        ImpVideoProcessor(frames=4, size=32, patch=(2, 8, 8)),
        ImpFeatureExtractor(seconds=0.25),
        train_tokenizer(["a dog", "a dog and a small cat that sleeps"], 64, max_length=16),
    )
    texts = ["a dog", "a dog and a small cat"]
    return folder, {"processor": processor, "picture": picture, "samples": samples, "texts": texts, "numpy": np}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_page_works(example, given, monkeypatch):
    folder, names = given
    monkeypatch.chdir(folder)
    out = eval(example.partition("#")[0].strip(), dict(names))
    assert len(out) >= 2 and all(len(value) for value in out.values())
    values = out.get("pixel_values")
    expected = {
        "[2, 12]": lambda: tuple(out["input_ids"].shape) == (2, 12),
        "as long as": lambda: out["attention_mask"].sum(1).max() == out["input_ids"].shape[1] < 16,
        "24 patches": lambda: tuple(values.shape) == (1, 24, 192),
        "64 x 96 stay": lambda: tuple(values.shape) == (1, 96, 192),
        "floats in": lambda: values.is_floating_point() and 0 <= values.min() < values.max() <= 1,
        "half of the": lambda: tuple(values.shape) == (1, 8, 192),
        "pixel_values_videos": lambda: tuple(out["pixel_values_videos"].shape) == (1, 8, 384),
    }
    said = example.partition("#")[2].strip()
    assert not said or any(said.startswith(begin) and holds() for begin, holds in expected.items())


def test_each_keyword_has_a_line_and_an_example():
    lines = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[2] for line in SECTION.splitlines() if line.startswith("|"))))
    assert sorted(lines) == NAMES
    used = set(re.findall(r"\b(\w+)=", "\n".join(EXAMPLES))) | set(re.findall(r'"(\w+)":', "\n".join(EXAMPLES)))
    assert set(NAMES) | set(GROUPS) <= used
