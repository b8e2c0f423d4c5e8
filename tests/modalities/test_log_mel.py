"""The log-mel transform against transformers' extractors and against numbers derived by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    ASTFeatureExtractor,
    ClapFeatureExtractor,
    ClvpFeatureExtractor,
    Speech2TextFeatureExtractor,
    WhisperFeatureExtractor,
)

from imp_ds.errors import UserError
from imp_ds.modalities.audio.log_mel import LogMel, mel_filters

AST = dict(
    frame_length=400, hop_length=160, mel_bins=128, f_min=20.0, f_max=8000.0, periodic_window=False, preemphasis=0.97,
    remove_offset=True, floor=1.192092955078125e-07,
)  # fmt: skip
WHISPER = dict(
    frame_length=400, hop_length=160, n_fft=400, mel_bins=80, f_min=0.0, f_max=8000.0, mel_scale="slaney", mel_norm="slaney",
    triangles="hertz", center=True, log="log10", floor=1e-10,
)  # fmt: skip


CLVP = dict(
    sampling_rate=22050, frame_length=1024, hop_length=256, mel_bins=80, f_min=0.0, f_max=8000.0, mel_norm="slaney",
    triangles="hertz", center=True, floor=1e-5,
)  # fmt: skip


def waveform(seconds: float, seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """A gliding tone with vibrato in noise, float32 at 16 kHz."""
    time = np.arange(int(seconds * 16000)) / 16000
    hiss = np.random.default_rng(seed).normal(0, noise, time.shape)
    return (0.4 * np.sin(2 * np.pi * (200 * time + 300 * time**2 + 2 * np.sin(30 * time))) + hiss + 0.05).astype(np.float32)


# AST's preemphasis sinks low bins 100 dB below the tone, where a float32 FFT has few digits left; `precise` has them all.
@pytest.mark.parametrize("noise,precise,tolerance", [(0.02, True, 1e-4), (0.0, True, 1e-4), (0.02, False, 5e-3)])
def test_equals_ast_features(noise, precise, tolerance):
    wave = waveform(2.0, noise=noise)
    theirs = ASTFeatureExtractor(do_normalize=False, max_length=198)(wave, sampling_rate=16000)["input_values"][0]
    ours = LogMel(**AST, precise=precise)(torch.from_numpy(wave)[None])[0]
    # frames: 1 + (32000 - 400) // 160 = 198
    assert ours.shape == (198, 128)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=tolerance)


def test_equals_whisper_features():
    wave = waveform(2.0)
    theirs = WhisperFeatureExtractor(chunk_length=2)(wave, sampling_rate=16000)["input_features"][0]
    ours = LogMel(**WHISPER)(torch.from_numpy(wave)[None])[0, :-1].T
    # Whisper's own scaling of its log-mel: the top 8 decades, (x + 4) / 4
    np.testing.assert_allclose((ours.clamp(min=ours.max() - 8) + 4) / 4, theirs, rtol=0, atol=1e-4)


def test_equals_clap_features():
    rng = np.random.default_rng(0)
    time = np.arange(96000) / 48000
    wave = (0.4 * np.sin(2 * np.pi * (200 * time + 300 * time**2)) + rng.normal(0, 0.02, time.shape)).astype(np.float32)
    extractor = ClapFeatureExtractor(truncation="rand_trunc", padding="pad", max_length_s=2)
    theirs = np.squeeze(extractor(wave, sampling_rate=48000)["input_features"][0])
    ours = LogMel(
        sampling_rate=48000, frame_length=1024, hop_length=480, mel_bins=64, f_min=0.0, f_max=14000.0, mel_scale="slaney",
        mel_norm="slaney", triangles="hertz", center=True, log="log10", floor=1e-10,
    )(torch.from_numpy(wave)[None])[0]  # fmt: skip
    # theirs is in decibels, ten times the logarithm
    np.testing.assert_allclose(ours, theirs / 10, rtol=0, atol=1e-4)


# The benchmark measures these settings against this extractor, which scales the recording to 16 bits: 2 ln 2^15 in each value.
@pytest.mark.parametrize("noise", [0.02, 0.0])
def test_equals_speech_to_text_features(noise):
    wave = waveform(2.0, noise=noise)
    extractor = Speech2TextFeatureExtractor(do_ceptral_normalize=False)
    theirs = extractor(wave, sampling_rate=16000)["input_features"][0]
    settings = {**AST, "mel_bins": 80, "window_power": 0.85, "floor": AST["floor"] / 2**30}
    ours = LogMel(**settings, precise=True)(torch.from_numpy(wave)[None])[0]
    np.testing.assert_allclose(ours.numpy() + 30 * math.log(2), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("noise,precise", [(0.1, False), (0.05, False), (0.001, True)])
def test_equals_clvp_features(noise, precise):
    wave = waveform(3.0, noise=noise)  # 48,000 samples: centred frames of 22.05 kHz, 1 + 48000 // 256 = 188
    theirs = ClvpFeatureExtractor()(wave, sampling_rate=22050, max_length=48000)["input_features"][0]
    ours = LogMel(**CLVP, precise=precise)(torch.from_numpy(wave)[None])[0]
    assert ours.shape == (188, 80)
    np.testing.assert_allclose(ours.numpy(), np.asarray(theirs).T, rtol=0, atol=1e-4)


def test_power_is_the_exponent_of_the_magnitude():
    # where a filter of weight w sees one bin of magnitude a, power 1 gives ln(w a) and power 2 gives ln(w a^2)
    wave = torch.from_numpy(waveform(0.5))[None]
    settings = dict(frame_length=400, hop_length=160, n_fft=512, mel_bins=40, f_min=1000.0, f_max=1600.0, triangles="hertz")
    energy, magnitude = LogMel(**settings)(wave), LogMel(**settings, power=1.0)(wave)
    filters = mel_filters(LogMel(**settings))
    single = np.flatnonzero((filters > 0).sum(0) == 1)  # 600 Hz / 41 corners: narrower than the 31.25 Hz between bins
    assert len(single) > 5
    expected = np.log(filters[:, single].max(0))  # 2 ln(w a) - ln(w a^2) = ln w
    np.testing.assert_allclose((2 * magnitude - energy)[0, :, single].median(0).values, expected, atol=1e-3)


def test_a_long_batch_equals_its_pieces():
    # 1,200 frames are computed in several pieces; frame i of the whole is frame 0 of the recording from i * hop on
    transform = LogMel(**{**AST, "mel_bins": 40})
    waves = torch.from_numpy(np.stack([waveform(12.1, 1), waveform(12.1, 2)]))
    full = transform(waves)
    for frame in (0, 511, 512, 1023, 1024, 1199):
        alone = transform(waves[:, frame * 160 : frame * 160 + 400])
        torch.testing.assert_close(full[:, frame], alone[:, 0], atol=1e-3, rtol=0)


def test_a_batch_equals_its_rows():
    transform = LogMel(**AST)
    waves = torch.from_numpy(np.stack([waveform(0.5, 1), waveform(0.5, 2)]))
    rows = torch.cat([transform(wave[None]) for wave in waves])
    torch.testing.assert_close(transform(waves), rows, atol=1e-5, rtol=0)


def test_default_frames_are_those_of_the_reference():
    # 8.192 s at 16 kHz = 131,072 samples = 128 steps of 1,024; the last frame needs 1,024 samples beyond the end
    assert LogMel().samples_for(128) == 131072 + 1024
    assert LogMel().fft_length == 2048
    assert LogMel()(torch.zeros(1, LogMel().samples_for(128))).shape == (1, 128, 128)


def test_silence_is_the_logarithm_of_the_floor():
    values = LogMel(floor=1e-6)(torch.zeros(1, 4096))
    assert values.unique().tolist() == pytest.approx([math.log(1e-6)])


def test_htk_scale_and_triangles_by_hand():
    # 0 to 700 * (10 - 1) = 6300 Hz is 0 to 2595 mel; with one bin the corners are 0, 1297.5, 2595 mel,
    # the middle one at 700 * (sqrt(10) - 1) = 1513.6 Hz. FFT of 16 at 16 kHz: bins 0, 1, 2, ... kHz.
    # 1 kHz = 2595 * log10(1 + 10/7) = 999.99 mel: 999.99 / 1297.5 = 0.77070 up the rising side;
    # 3 kHz = 2595 * log10(1 + 30/7) = 1876.47 mel: (2595 - 1876.47) / 1297.5 = 0.55378 on the falling side; 7 kHz lies outside.
    filters = mel_filters(LogMel(frame_length=16, hop_length=8, mel_bins=1, f_min=0.0, f_max=6300.0))
    assert filters.shape == (9, 1)
    assert filters[[0, 1, 3, 7], 0] == pytest.approx([0.0, 0.77070, 0.55378, 0.0], abs=2e-5)


def test_a_tone_lights_the_bin_of_its_frequency():
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16000) / 16000)[None]
    transform = LogMel(frame_length=400, hop_length=160, mel_bins=64)
    # 80..7600 Hz is 121.95..2786.94 mel, 66 corners 41.0 mel apart; 1 kHz = 999.99 mel is 21.41 steps up: the bin with
    # centre 21 (index 20)
    assert transform(tone).mean(1).argmax().item() == 20


@pytest.mark.parametrize(
    "wrong", [dict(f_max=9000.0), dict(n_fft=1024), dict(mel_scale="bark"), dict(hop_length=0), dict(log="log2")]
)
def test_contradicting_settings_are_refused(wrong):
    with pytest.raises(UserError):
        LogMel(**wrong)
