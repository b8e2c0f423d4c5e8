"""Files given to ImpProcessor: what training makes of the same file, within the same bounds."""

import io
from functools import partial

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from imp_ds import ImpProcessor
from imp_ds.data.decoding import decode
from imp_ds.data.loading.collation import Collator
from imp_ds.errors import UserError
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.media import Media
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision import picture_files
from imp_ds.modalities.vision.patches import clip_indices
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp import media_files
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

RATE = 16000
FRAMES = np.empty((12, 32, 40, 3), dtype=np.uint8)
FRAMES[:] = np.arange(12)[:, None, None, None] * 20  # grey 0, 20, .. 220


@pytest.fixture(scope="module")
def processor():
    return ImpProcessor(
        ImpImageProcessor(size=16, patch=(2, 8, 8)),
        ImpVideoProcessor(frames=4, size=16, patch=(2, 8, 8)),
        ImpFeatureExtractor(seconds=0.5, mean=-4.0, std=3.0),
        train_tokenizer(["one two"], 32),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video of 12 frames in a lossless codec; a recording of 0.8 s in 16 bits; a photograph of 320 x 400."""
    root = tmp_path_factory.mktemp("files")
    with av.open(str(root / "video.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *FRAMES.shape[1:3], "bgr0"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    soundfile.write(root / "tone.flac", np.sin(np.arange(12800) / 7) / 2, RATE, subtype="PCM_16")
    noise = np.random.default_rng(0).integers(0, 256, (20, 25, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((400, 320)).save(root / "photo.jpg", quality=95)
    return root


def collated(processor, role: str, path, views: Views) -> dict:
    """What training's own way makes of a file, drawing nothing."""
    sample = decode({role: Media(str(path), path=path)}, views)
    return Collator(processor)("task", views, [sample]).inputs[role]


def forms(path):
    """A file in every way that it can be given; each to be used once."""
    data = path.read_bytes()
    return [str(path), path, [path], data, io.BytesIO(data), [io.BytesIO(data)], path.open("rb")]


def test_a_video_file_is_its_frames_and_what_training_sees(processor, folder):
    path = folder / "video.mkv"
    expected = processor(videos=FRAMES)["pixel_values"]
    assert expected[0, ::4, 0].tolist() == [20, 140]  # the middles of four stretches of 12 frames: 1, 4, 7, 10; patches have two
    for form in forms(path):
        assert torch.equal(processor(videos=form)["pixel_values"], expected)
    training = collated(processor, "vision", path, Views(vision=VisionView(frames=4, height=16, width=16)))
    assert torch.equal(training["pixel_values"], expected)
    assert processor(videos=[path, FRAMES, path])["pixel_values"].shape == (3, 8, 384)


@pytest.mark.parametrize(("sampling", "places"), [("uniform", [1, 4, 7, 10]), ("stride", [0, 3, 6, 9]), ("clip", [1, 4, 7, 10])])
def test_frames_are_taken_as_the_view_takes_them(processor, folder, sampling, places):
    """Of 12 frames by threes: "clip" spares 12 - 10 = 2 of them, one before."""
    options = {"sampling": sampling, "stride": 3}
    assert clip_indices(12, 4, **options).tolist() == places
    view = Views(vision=VisionView(frames=4, height=16, width=16, **options))
    training = collated(processor, "vision", folder / "video.mkv", view)["pixel_values"]
    for video in (folder / "video.mkv", FRAMES, list(FRAMES)):
        assert torch.equal(processor(videos=video, **options)["pixel_values"], training)


def test_a_short_video_repeats_its_last_frame_however_it_is_given(processor, folder):
    """By fives from the beginning: frames 0, 5, 10, and 10 again."""
    assert clip_indices(12, 4, "stride", 5).tolist() == [0, 5, 10, 10]
    by_file, by_array = (processor(videos=video, sampling="stride", stride=5) for video in (folder / "video.mkv", FRAMES))
    assert torch.equal(by_file["pixel_values"], by_array["pixel_values"])
    with pytest.raises(UserError, match="unknown sampling"):
        processor(videos=FRAMES, sampling="random")
    with pytest.raises(UserError, match="stride of the video processor"):
        processor(videos=FRAMES, stride=0)


def test_all_frames_of_a_file(processor, folder):
    for video in (folder / "video.mkv", FRAMES):
        values = processor(videos=video, do_sample_frames=False)["pixel_values"]
        assert values.shape == (1, 6 * 4, 384) and values[0, ::4, 0].tolist() == [0, 40, 80, 120, 160, 200]
    with pytest.raises(UserError, match="differ in the number of their frames"):
        processor(videos=[FRAMES, FRAMES[:4]], do_sample_frames=False)


def test_an_audio_file_is_its_samples_and_what_training_hears(processor, folder):
    path = folder / "tone.flac"
    samples, rate = soundfile.read(path, dtype="float32")
    expected = processor(audio=samples, sampling_rate=rate)["input_features"]
    for form in [*forms(path), {"array": samples, "sampling_rate": rate}]:
        assert torch.equal(processor(audio=form)["input_features"], expected)
    training = collated(processor, "audio", path, Views(audio=AudioView(seconds=0.5)))["input_features"]
    assert training.dtype == torch.float16 and torch.equal(training, expected.half())  # what workers send is of 16 bits
    mixed = processor(audio=[path, samples], sampling_rate=[None, rate])["input_features"]
    assert torch.equal(mixed, expected.repeat(2, 1, 1))


def test_a_large_photograph_is_decoded_as_in_training(processor, folder):
    """320 x 400 for 16 x 16: JPEG decodes an eighth of it, 40 x 50, whoever asks."""
    path = folder / "photo.jpg"
    training = collated(processor, "vision", path, Views(vision=VisionView(height=16, width=16)))["pixel_values"]
    for form in forms(path):
        assert torch.equal(processor(images=form)["pixel_values"], training)


def test_an_animation_is_a_video(processor, tmp_path):
    first, *others = (Image.fromarray(frame) for frame in FRAMES[:4])
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=100)
    expected = processor(videos=FRAMES[:4])["pixel_values"]
    for form in forms(tmp_path / "a.png"):
        assert torch.equal(processor(videos=form)["pixel_values"], expected)


@pytest.mark.parametrize("keyword", ["images", "videos", "audio"])
def test_what_cannot_be_read_is_refused_in_words(processor, tmp_path, keyword):
    (tmp_path / "empty").touch()
    (tmp_path / "text.mp4").write_text("no media" * 100)
    for wrong in (tmp_path / "absent.mp4", tmp_path / "empty", tmp_path / "text.mp4", b"no media", b"", tmp_path, "\0"):
        with pytest.raises(UserError, match="cannot be read"):
            processor(**{keyword: wrong})
    for url in ("https://example.org/a", "file:///a", "s3://a/b"):
        with pytest.raises(UserError, match="fetches nothing"):
            processor(**{keyword: url})
    with pytest.raises(UserError, match="opened as text"):
        processor(**{keyword: io.StringIO("a")})


def test_the_bounds_of_decoding_hold(processor, folder, monkeypatch):
    def bounded(**bounds):
        for module in (picture_files, media_files.import_module(media_files._DECODERS)):
            monkeypatch.setattr(module, "DecodingSettings", partial(DecodingSettings, **bounds))

    bounded(image_pixels=1279)  # a frame has 32 x 40 = 1280
    for keyword, name in (("images", "photo.jpg"), ("videos", "video.mkv")):
        with pytest.raises(UserError, match="more than .*1279"):
            processor(**{keyword: folder / name})
    bounded(audio_samples=12799)
    with pytest.raises(UserError, match="too large.*12799"):
        processor(audio=folder / "tone.flac")


def test_without_decoders_files_are_refused_and_arrays_are_not(processor, folder, monkeypatch):
    def absent(name):
        raise ImportError("No module named 'av'")

    monkeypatch.setattr(media_files, "import_module", absent)
    for keyword, name in (("videos", "video.mkv"), ("audio", "tone.flac")):
        with pytest.raises(UserError, match="pip install av soundfile"):
            processor(**{keyword: folder / name})
    assert processor(images=folder / "photo.jpg", videos=FRAMES)["pixel_values_videos"].shape == (1, 8, 384)
