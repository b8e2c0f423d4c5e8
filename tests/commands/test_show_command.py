"""`data show`: what the page holds is what the model is fed, down to the pixel, and nothing from elsewhere."""

import base64
import html
import io
import re
import wave

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from helpers.made_corpus import IMAGES, RATE, make_run, picture, tone, write_images, write_recordings, write_rows
from helpers.media_files import write_video
from imp_ds.commands.check.command import processor_of
from imp_ds.commands.show_command import show
from imp_ds.data.corpus import open_corpus
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.errors import UserError
from imp_ds.train.recording.first_samples import first_occurrences
from imp_ds.train.schedule import build_schedule

CAPTIONS = ["<b>bold</b> & red", "a cat", "two dogs", "no end"]
FRAMES, PIXELS = 4, 16


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four pictures and two videos that have the view's size already, and three tones."""
    root = tmp_path_factory.mktemp("shown")
    folder = write_rows(
        root, "images", *(dict(file_name=f"{n}.png", label=n % 3, captions=caption) for n, caption in enumerate(CAPTIONS))
    )
    for n in range(4):
        Image.fromarray(picture(PIXELS, PIXELS, n)).save(folder / f"{n}.png")
    folder = write_rows(root, "films", *(dict(file_name=f"{n}.mp4", label=n) for n in range(2)))
    for n in range(2):
        write_video(folder / f"{n}.mp4", film(n), tone(500)[None])
    write_recordings(root)
    return root


def film(n: int) -> np.ndarray:
    """Frames of one colour each."""
    return np.stack([np.full((PIXELS, PIXELS, 3), (60 * frame, 100 * n, 50), np.uint8) for frame in range(FRAMES)])


def page(root, out, *names: str, samples: int = 8, **data) -> list[dict]:
    """The sections of these tasks on a page: {"title", "facts", "cards"}, with cards {"pictures", "sounds", "caption", "key"}."""
    assert show(make_run(root, "image_text", *names, **data), "train", samples, None, out).startswith(f"wrote {out}: ")
    sections = [section(text) for text in out.read_text().split("<h2>")[1:]]
    return [found for found in sections if found["title"].split(",")[0] in names]


def section(text: str) -> dict:
    found = {"title": text.split("</h2>")[0], "facts": html.unescape(re.search("<p>(.*?)</p>", text)[1]), "cards": []}
    for card in re.findall("<figure>(.*?)</figure>", text, re.S):
        caption, key = re.search("<figcaption>(.*?)<small>(.*?)</small>", card, re.S).groups()
        pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in embedded(card, "image/png")]
        waveforms = [played(data) for data in embedded(card, "audio/wav")]
        found["cards"].append({"pictures": pictures, "sounds": waveforms, "caption": caption, "key": html.unescape(key)})
    return found


def embedded(card: str, kind: str) -> list[bytes]:
    return [base64.b64decode(data, validate=True) for data in re.findall(f'src="data:{kind};base64,(.*?)"', card)]


def played(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767, file.getframerate()


def fed(root, name: str, view: int = 0, samples: int = 8):
    """The batch that the loader makes of a task's first occurrence."""
    run = make_run(root, "image_text", name)
    readers = open_corpus(run)
    processor, schedule = processor_of(run, readers, None), build_schedule("rotation", run.tasks, 0)
    batches = StepBatches(run.tasks, schedule, readers, Collator(processor), seed=0, cache_mb=0)
    return batches.first_of(first_occurrences(batches)[name], samples, view), processor


def times(picture_HW3: np.ndarray, n: int) -> np.ndarray:
    return np.kron(picture_HW3, np.ones((n, n, 1), np.uint8))


def test_pictures_are_those_of_the_files_and_of_the_batch(root, tmp_path):
    [shown] = page(root, tmp_path / "page.html", "image_text")
    batch, _ = fed(root, "image_text")
    assert [card["key"] for card in shown["cards"]] == list(batch.report.keys) and len(shown["cards"]) == 2
    for position, card in enumerate(shown["cards"]):
        [seen] = card["pictures"]
        number = int(card["key"].removesuffix(".png"))
        assert np.array_equal(seen, times(picture(PIXELS, PIXELS, number), 6))  # 16 pixels are enlarged to 96
        for token in range(16):  # [row, column, channel] of a patch: an image has one frame
            row, column = 4 * (token // 4), 4 * (token % 4)
            patch = batch.inputs["vision"]["pixel_values"][position, token].reshape(4, 4, 3).numpy()
            assert np.array_equal(patch, seen[::6, ::6][row : row + 4, column : column + 4])


def test_dropped_tokens_are_grey_and_all_others_are_in_their_place(root, tmp_path):
    full, dropped = page(root, tmp_path / "page.html", "image_class")
    assert (full["title"], dropped["title"]) == ("image_class, view 0", "image_class, view 1")
    assert "16 tokens, 0% padding" in full["facts"] and "drop_rate 0.5 (8 tokens, 0% padding)" in dropped["facts"]
    for card in dropped["cards"]:
        seen = card["pictures"][0][::6, ::6].reshape(4, 4, 4, 4, 3).swapaxes(1, 2)  # [row, column, 4, 4, 3]
        expected = picture(PIXELS, PIXELS, int(card["key"].removesuffix(".png"))).reshape(4, 4, 4, 4, 3).swapaxes(1, 2)
        kept = (seen == expected).all((2, 3, 4))
        assert kept.sum() == 8 and (seen[~kept] == 128).all()


def test_frame_strips_show_the_frames_one_after_another(root, tmp_path):
    [shown] = page(root, tmp_path / "page.html", "film_class")
    assert len(shown["cards"]) == 2
    for card in shown["cards"]:
        [strip] = card["pictures"]
        assert strip.shape == (96, FRAMES * 96 + 3 * 2, 3)  # with two white pixels between
        for frame, expected in enumerate(film(int(card["key"].removesuffix(".mp4")))):
            begin = frame * 98
            assert np.abs(strip[:, begin : begin + 96].astype(int) - times(expected, 6)).max() <= 6  # it was in YUV
            assert (strip[:, begin + 96 : begin + 98] == 255).all()


def test_spectrograms_are_those_of_the_batch(root, tmp_path):
    [shown] = page(root, tmp_path / "page.html", "sound_class", samples=3)
    batch, processor = fed(root, "sound_class", samples=3)
    bins, brightest = processor.feature_extractor.feature_size, {}
    features, positions = batch.inputs["audio"]["input_features"].float().numpy(), batch.inputs["audio"]["feature_positions"]
    for position, card in enumerate(shown["cards"]):
        bands = bins // 16
        steps = features.shape[1] // bands
        mel_FM = np.zeros((steps * 8, bins), np.float32)
        for token, (at, band) in enumerate(positions[position].numpy()):
            row, column = round(float(at) * steps) * 8, round(float(band) * bands) * 16
            mel_FM[row : row + 8, column : column + 16] = features[position, token].reshape(8, 16)
        scaled = (mel_FM - mel_FM.min()) / (mel_FM.max() - mel_FM.min())
        expected = (colormaps["magma"](scaled)[..., :3] * 255).astype(np.uint8).transpose(1, 0, 2)[::-1]  # low tones below
        [seen] = card["pictures"]
        n = seen.shape[0] // bins
        assert seen.shape[0] >= 96 and np.array_equal(seen, times(expected, n))
        brightest[card["key"]] = int(seen[::n, ::n].astype(int).sum((1, 2)).argmax())
    assert brightest["6000.wav"] < brightest["2000.wav"] < brightest["500.wav"]


def test_recordings_are_heard_as_they_are_in_the_files(root, tmp_path):
    [shown] = page(root, tmp_path / "page.html", "sound_class", samples=3)
    assert len(shown["cards"]) == 3
    for card in shown["cards"]:
        [(samples, rate)] = card["sounds"]
        assert rate == RATE and np.abs(samples - tone(int(card["key"].removesuffix(".wav")))).max() < 2 / 32767


def test_captions_are_read_from_the_tokens_and_markup_in_them_is_text(root, tmp_path):
    _, processor = fed(root, "image_text")
    said = {}
    for seed in range(4):
        [part] = page(root, tmp_path / "page.html", "image_text", seed=seed)
        said |= {card["key"]: card["caption"] for card in part["cards"]}
    cut = {f"{n}.png": processor.tokenizer.decode(processor.tokenizer(text)["input_ids"][:8]) for n, text in enumerate(CAPTIONS)}
    assert len(said) == 4
    named = {f"{n}.png": f"class {n % 3}: {IMAGES.label_names[n % 3]}" for n in range(len(CAPTIONS))}
    assert said == {key: f"{html.escape(text)}<br>{named[key]}<br>" for key, text in cut.items()}
    assert "<b>" not in said["0.png"]


def test_classes_have_their_names(root, tmp_path):
    [full, _] = page(root, tmp_path / "page.html", "image_class")
    for card in full["cards"]:
        number = int(card["key"].removesuffix(".png")) % 3
        assert card["caption"] == f"class {number}: {IMAGES.label_names[number]}<br>"


def test_hidden_words_are_shown_as_hidden_and_reported_beside(root, tmp_path):
    [shown] = page(root, tmp_path / "page.html", "words")
    batch, processor = fed(root, "words")
    masks = (batch.inputs["text"]["input_ids"] == processor.tokenizer.mask_token_id).sum(1).tolist()
    assert sum(masks) > 0
    for position, card in enumerate(shown["cards"]):
        said, hidden = card["caption"].split("<br>hidden: ")
        assert said.count("<b>▒</b>") == masks[position]
        target = batch.targets["token_ids"][position]
        assert hidden == f"<b>{html.escape(processor.tokenizer.decode(target[target >= 0].tolist()))}</b><br>"


def test_what_is_left_out_on_the_way_is_counted(tmp_path):
    write_images(tmp_path)
    folder = write_rows(tmp_path, "films", *(dict(file_name=f"{n}.mp4", label=0) for n in range(2)))
    write_video(folder / "0.mp4", film(0))
    (folder / "1.mp4").write_bytes(b"no film")
    [shown] = page(tmp_path, tmp_path / "page.html", "film_class")
    left_out = re.search("left out on the way: ([0-9]+)", shown["facts"])
    assert [card["key"] for card in shown["cards"]] == ["0.mp4"] * 2 and int(left_out[1]) >= 1


def test_the_page_refers_to_nothing_outside_of_it(root, tmp_path):
    out = tmp_path / "page.html"
    assert len(page(root, out, "image_text", "film_class", "film_sound", "sound_class", "words", samples=1)) == 5
    text = out.read_text()
    references = re.findall(r"""(?:src|href|srcset|data|action|poster)\s*=\s*["']?([^"'>]{0,20})""", text)
    assert references and all(found.startswith(("data:image/png;", "data:audio/wav;")) for found in references)
    assert not re.search(r"<script|<link|<iframe|@import|url\(|https?:", text)


def test_bad_input(root, tmp_path):
    run = make_run(root, "image_text")
    for out in (tmp_path, tmp_path / "no" / "page.html"):
        with pytest.raises(UserError, match="the page cannot be written there"):
            show(run, "train", 2, None, out)
    with pytest.raises(UserError, match="the run has no processor"):
        show(run, "train", 2, tmp_path, tmp_path / "page.html")
    with pytest.raises(UserError, match="images/test does not exist"):
        show(run, "test", 2, None, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
