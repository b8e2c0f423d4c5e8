"""Sounds to spectrogram patches: channels, rates, lengths, order of values."""

import math

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from imp_ds.errors import UserError
from imp_ds.modalities.audio import patches as audio
from imp_ds.modalities.audio.augmentation import SpecMasks
from imp_ds.modalities.audio.log_mel import LogMel

SHORT = LogMel(frame_length=400, hop_length=160, mel_bins=64)
SILENCE = math.log(SHORT.floor)


def tone(hertz, rate, seconds):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def spectrogram(features, bins=64, patch=(16, 16)):
    """Patches [L, P] back to [F, M], by loops."""
    bands = bins // patch[1]
    out = np.zeros((len(features) // bands * patch[0], bins), np.float32)
    for index, values in enumerate(features):
        step, band = divmod(index, bands)
        block = out[step * patch[0] : (step + 1) * patch[0], band * patch[1] : (band + 1) * patch[1]]
        block[:] = values.reshape(patch)
    return out


def test_one_second_fills_whole_patches_with_the_spectrogram():
    wave = tone(440, 16000, 1.0)
    out = audio.preprocess([wave], [16000], SHORT, 1.0, (16, 16))
    # 16000 / 160 = 100 frames, rounded up to 112 = 7 patches; 64 / 16 = 4 bands
    assert out["input_features"].shape == (1, 28, 256) and out["feature_positions"].shape == (1, 28, 2)
    padded = np.zeros(111 * 160 + 400, np.float32)
    padded[:16000] = wave
    np.testing.assert_allclose(spectrogram(out["input_features"][0]), SHORT(torch.from_numpy(padded)[None])[0], atol=1e-5)
    assert out["feature_positions"][0, 5].tolist() == pytest.approx([1 / 7, 1 / 4])


def test_the_reference_recipe_gives_64_tokens():
    # 8.192 s: 128 frames x 128 bins in patches of 16 x 16 (IMP section 3.1)
    out = audio.preprocess([tone(440, 16000, 2.0)], [16000], LogMel(), 8.192, (16, 16))
    assert out["input_features"].shape == (1, 64, 256)


def test_standardisation_is_affine_and_fixed():
    plain = audio.preprocess([tone(440, 16000, 1.0)], [16000], SHORT, 1.0, (16, 16))["input_features"]
    scaled = audio.preprocess([tone(440, 16000, 1.0)], [16000], SHORT, 1.0, (16, 16), mean=-3.0, std=4.0)["input_features"]
    np.testing.assert_allclose(scaled, (plain + 3.0) / 4.0, atol=1e-6)


def test_normalised_recordings_are_those_of_transformers_whatever_their_loudness():
    waveform = np.random.default_rng(0).normal(0.1, 0.05, 9600).astype(np.float32)  # 0.6 s, and not around zero
    (expected,) = Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm([waveform.astype(np.float64)], None)
    settings = dict(rngs=[np.random.default_rng(1)], crop="random")
    plain = audio.preprocess([expected], [16000], SHORT, 1.0, (16, 16), **settings)["input_features"]
    for factor in (1.0, 0.3, 5.0):
        settings = dict(rngs=[np.random.default_rng(1)], crop="random")
        found = audio.preprocess([factor * waveform], [16000], SHORT, 1.0, (16, 16), do_normalize=True, **settings)
        np.testing.assert_allclose(found["input_features"], plain, atol=1e-3)


def test_what_is_taken_is_normalised_and_silence_stays_silent():
    waveform = tone(440, 16000, 2.0)
    waveform[16000:] *= 50.0  # not heard, so it counts for nothing
    full, half = ([one] for one in (waveform, waveform[:16000]))
    found = [audio.preprocess(s, [16000], SHORT, 1.0, (16, 16), do_normalize=True)["input_features"] for s in (full, half)]
    np.testing.assert_array_equal(*found)
    silence = audio.preprocess([np.full(8000, 0.3, np.float32)], [16000], SHORT, 1.0, (16, 16), do_normalize=True)
    np.testing.assert_allclose(silence["input_features"], SILENCE, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_any_rate_gives_the_same_tone(rate):
    target = audio.preprocess([tone(1000, 16000, 1.0)], [16000], SHORT, 1.0, (16, 16))["input_features"][0]
    other = audio.preprocess([tone(1000, rate, 1.0)], [rate], SHORT, 1.0, (16, 16))["input_features"][0]
    peak = spectrogram(target)[20:80].mean(0)
    same = spectrogram(other)[20:80].mean(0)
    assert peak.argmax() == same.argmax()
    # bins within 40 dB (a factor of 1e4, 9.2 in ln) of the tone agree to 1 dB (0.23)
    loud = peak > peak.max() - 9.2
    np.testing.assert_allclose(same[loud], peak[loud], atol=0.23)


def test_channels_are_averaged_on_whichever_axis():
    left, right = tone(300, 16000, 0.1), tone(900, 16000, 0.1)
    mean = (left + right) / 2
    np.testing.assert_allclose(audio.to_mono(np.stack([left, right])), mean, atol=1e-6)
    np.testing.assert_allclose(audio.to_mono(np.stack([left, right], 1)), mean, atol=1e-6)


def test_integers_are_shares_of_their_range():
    assert audio.to_mono(np.array([-32768, 0, 16384], np.int16)).tolist() == [-1.0, 0.0, 0.5]
    assert audio.to_mono(np.array([0, 128, 192], np.uint8)).tolist() == [-1.0, 0.0, 0.5]


def placed(crop, waveform, rng=None):
    """Which of ten tenths of a second hold audio."""
    out = audio.preprocess([waveform], [16000], SHORT, 1.0, (16, 16), crop=crop, rngs=rng and [rng])["input_features"][0]
    loudness = spectrogram(out).max(1)[:100].reshape(10, 10)
    return [int(tenth[3:7].min() > SILENCE + 5) for tenth in loudness]


def test_short_recordings_lie_at_the_start_or_the_centre():
    assert placed("start", tone(1000, 16000, 0.4)) == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert placed("center", tone(1000, 16000, 0.4)) == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_long_recordings_are_cut():
    # audio only in the middle second of three
    waveform = np.concatenate([np.zeros(16000, np.float32), tone(1000, 16000, 1.0), np.zeros(16000, np.float32)])
    assert placed("start", waveform) == [0] * 10
    assert placed("center", waveform) == [1] * 10


def test_random_crops_differ_and_repeat_with_the_seed():
    waveform = tone(1000, 16000, 0.3)
    first = [placed("random", waveform, np.random.default_rng(seed)) for seed in range(6)]
    assert len({tuple(place) for place in first}) > 2
    assert first == [placed("random", waveform, np.random.default_rng(seed)) for seed in range(6)]


def test_drop_token_keeps_true_places_of_each_recording():
    waveforms = [tone(440, 16000, 1.0), tone(880, 16000, 1.0)]
    full = audio.preprocess(waveforms, [16000] * 2, SHORT, 1.0, (16, 16))
    rngs = [np.random.default_rng(0), np.random.default_rng(1)]
    part = audio.preprocess(waveforms, [16000] * 2, SHORT, 1.0, (16, 16), drop_rate=0.5, rngs=rngs)
    assert part["input_features"].shape == (2, 14, 256)
    for row in range(2):
        kept = np.rint(part["feature_positions"][row] @ [28, 4]).astype(int)  # (step / 7, band / 4) to 4 step + band
        np.testing.assert_array_equal(part["input_features"][row], full["input_features"][row][kept])


def test_masks_are_bands_of_the_mean():
    """With bands of at most half of the time and a quarter of the frequencies, what is masked is 0 in whole rows and
    columns."""
    waveforms, masks = [tone(440, 16000, 1.0)], SpecMasks(1, 0.5, 0.25)
    plain = spectrogram(audio.preprocess(waveforms, [16000], SHORT, 1.0, (16, 16))["input_features"][0])
    shares = []
    for seed in range(40):
        rngs = [np.random.default_rng(seed)]
        out = spectrogram(audio.preprocess(waveforms, [16000], SHORT, 1.0, (16, 16), masks=masks, rngs=rngs)["input_features"][0])
        zero = out == 0
        rows, columns = zero.all(1), zero.all(0)
        np.testing.assert_array_equal(zero, rows[:, None] | columns[None, :])
        np.testing.assert_array_equal(out[~zero], plain[~zero])
        assert (np.diff(np.flatnonzero(rows)) == 1).all() and (np.diff(np.flatnonzero(columns)) == 1).all()
        shares.append((rows.mean(), columns.mean()))
    assert 0.3 < max(time for time, _ in shares) <= 0.5 and 0.15 < max(band for _, band in shares) <= 0.25


def test_half_precision_is_the_same_to_its_rounding():
    waveforms = [tone(440, 16000, 1.0)]
    full, half = (audio.preprocess(waveforms, [16000], SHORT, 1.0, (16, 16), dtype=t) for t in (np.float32, np.float16))
    assert half["input_features"].dtype == np.float16
    np.testing.assert_allclose(half["input_features"].astype(np.float32), full["input_features"], rtol=2**-11)


@pytest.mark.parametrize(
    "waveform,rate",
    [
        (np.zeros(0), 16000),
        (np.array([0.0, np.nan]), 16000),
        (np.zeros((2, 3, 4)), 16000),
        (np.zeros((100, 100)), 16000),
        (np.array(["a"]), 16000),
        (np.zeros(100), 16000.0),
        (np.zeros(100), 0),
        (np.zeros(100), "16000"),
    ],
)
def test_what_is_no_audio_is_refused(waveform, rate):
    with pytest.raises(UserError):
        audio.preprocess([waveform], [rate], SHORT, 1.0, (16, 16))
