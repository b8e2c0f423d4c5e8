"""Media that are named by files, in a conversation and beside a text: read as training reads them, without further packages."""

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from helpers.talking import export_talking
from imp_ds.errors import UserError


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    folder, _, processor = export_talking(tmp_path_factory.mktemp("named"))
    root = folder.parent
    with av.open(str(root / "a.mp4")) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    arrays = {
        "image": np.asarray(Image.open(root / "a.png")), "video": frames,
        "audio": soundfile.read(root / "a.wav", dtype="float32")[0],
    }  # fmt: skip
    names = {kind: str(root / f"a.{suffix}") for kind, suffix in (("image", "png"), ("video", "mp4"), ("audio", "wav"))}
    return processor, arrays, names


def asked(processor, *parts):
    turns = [{"role": "user", "content": [*parts, {"type": "text", "text": "what?"}]}]
    return processor.apply_chat_template([turns], tokenize=True, return_dict=True, add_generation_prompt=True)


@pytest.mark.parametrize("key", ["own", "path", "url"])
@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_a_file_in_a_conversation_is_what_it_holds(talking, kind, key):
    processor, arrays, names = talking
    found = asked(processor, part := {"type": kind, kind if key == "own" else key: names[kind]})
    expected = asked(processor, {"type": kind, kind: arrays[kind]})
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)
    assert list(part.values()) == [kind, names[kind]]  # the conversation stays what it was


def test_files_beside_a_text_are_what_they_hold(talking):
    processor, arrays, names = talking
    inputs = [
        processor(text="<image><video><audio>what?", images=[media["image"]], videos=[media["video"]], audio=[media["audio"]])
        for media in (names, arrays)
    ]
    assert all(np.array_equal(inputs[0][name], inputs[1][name]) for name in inputs[1])


def test_audio_of_another_rate_is_brought_to_that_of_the_tower(talking, tmp_path):
    """Half a second at 8 kHz of a tone of 440 Hz is half a second at 16 kHz."""
    processor = talking[0]
    for rate in (8000, 16000):
        soundfile.write(
            tmp_path / f"{rate}.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate), rate, subtype="FLOAT"
        )
    one, other = (asked(processor, {"type": "audio", "audio": str(tmp_path / f"{rate}.wav")}) for rate in (8000, 16000))
    loud = other["input_features"] > 0.5  # what is heard at all; elsewhere the logarithm shows the filter's last digits
    assert loud.any() and np.abs(one["input_features"] - other["input_features"])[loud].max() < 0.05


@pytest.mark.parametrize("kind, what", [("video", "a video cannot be read"), ("audio", "audio cannot be read")])
def test_a_file_that_is_not_there_is_one_message(talking, kind, what):
    with pytest.raises(UserError, match=f"{what}\n  got: +missing file: nope.bin"):
        asked(talking[0], {"type": kind, kind: "nope.bin"})
    with pytest.raises(UserError, match="the processor fetches nothing"):
        asked(talking[0], {"type": kind, "url": "https://example.org/a"})
