"""ImpFeatureExtractor: recordings of any rate, length and number of channels to log-mel patches."""

from dataclasses import asdict

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature

from imp_ds.errors import UserError
from imp_ds.modalities.audio import patches as audio
from imp_ds.modalities.audio.log_mel import LogMel
from imp_ds.modalities.vision.picture_files import is_file
from imp_ds.models.imp.keywords import ImpAudioKwargs, check_keywords
from imp_ds.models.imp.media_files import audio_of

_ALLOWED = 'arrays of samples, {"array": ..., "sampling_rate": ...}, paths, bytes or open files, or a list of those'


class ImpFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel spectrograms of `seconds` of audio, standardised by fixed numbers and cut into patches.

    Args:
        log_mel: the fields of `imp_ds.modalities.audio.log_mel.LogMel`; what is left out has the default there.
        seconds: length of the recording; longer ones are cut, shorter ones padded with silence.
        patch: spectrogram frames and mel bins of a patch, as `ImpConfig.audio_patch`.
        mean, std: log-mel values become (value - mean) / std.
        do_normalize: whether each recording is brought to mean 0 and variance 1 first, so that its loudness does not count.
        crop: "start", "center" or "random": where a long recording is cut and a short one lies.
    """

    model_input_names = list(audio.INPUT_NAMES)
    valid_kwargs = ImpAudioKwargs

    def __init__(
        self, log_mel=None, seconds=8.192, patch=(16, 16), mean=0.0, std=1.0, crop="start", do_normalize=False, **kwargs
    ):
        transform = make_log_mel(log_mel or {})
        for name, value in (("feature_size", transform.mel_bins), ("sampling_rate", transform.sampling_rate)):
            if kwargs.pop(name, value) != value:
                raise UserError(f"{name} of the feature extractor follows from log_mel", allowed=value, fix="set it in log_mel")
        kwargs = {"padding_value": 0.0, "return_attention_mask": False, **kwargs}
        super().__init__(feature_size=transform.mel_bins, sampling_rate=transform.sampling_rate, **kwargs)
        self.log_mel = asdict(transform)
        self.seconds = seconds
        self.patch = list(patch)
        self.mean, self.std = mean, std
        self.crop = crop
        self.do_normalize = do_normalize
        self.transform = transform

    def __call__(
        self, raw_speech, sampling_rate=None, *, seconds=None, crop=None, drop_rate=0.0, rng=None, return_tensors=None, **unknown
    ) -> BatchFeature:
        """Audio to a BatchFeature of `input_features` float32 [B, L, P] and `feature_positions` [B, L, 2].

        Args:
            raw_speech: one array ([samples], or with channels on the shorter axis), {"array": one, "sampling_rate": of it}, or a
                path, bytes or an open file of a recording or a video; or a list of those.
            sampling_rate: of arrays: one number, or one for each entry; what has a rate of its own needs none.
            seconds, crop: instead of the stored ones.
            drop_rate, rng: DropToken and random crops, for training.

        Raises:
            UserError: something that is no audio, or no sampling rate.
        """
        given = {"sampling_rate": sampling_rate, "seconds": seconds, "crop": crop, "drop_rate": drop_rate, **unknown}
        check_keywords("the feature extractor", given, self.valid_kwargs)
        samples, rates = with_rates(audio_list(raw_speech), sampling_rate)
        inputs = audio.preprocess(
            samples, rates, self.transform, self.seconds if seconds is None else seconds, self.patch,
            mean=self.mean, std=self.std, do_normalize=self.do_normalize, crop=crop or self.crop, drop_rate=drop_rate,
            rngs=None if rng is None else [rng] * len(samples),
        )  # fmt: skip
        return BatchFeature(inputs, tensor_type=return_tensors)

    def to_dict(self) -> dict:
        fields = super().to_dict()
        del fields["transform"]
        return fields


def make_log_mel(settings: dict) -> LogMel:
    unknown = sorted(set(settings) - set(LogMel.__dataclass_fields__))
    if unknown:
        raise UserError("unknown settings of log_mel", got=", ".join(unknown), allowed=", ".join(LogMel.__dataclass_fields__))
    return LogMel(**settings)


def audio_list(raw_speech) -> list:
    """The batch as a list of what is one recording each; a list of numbers is one."""
    if isinstance(raw_speech, (list, tuple)) and raw_speech and not _is_numbers(raw_speech):
        entries = list(raw_speech)
    else:
        entries = [raw_speech]
    for entry in entries:
        is_dict = isinstance(entry, dict) and {"array", "sampling_rate"} <= entry.keys()
        if not (is_dict or _is_numbers(entry) or hasattr(entry, "__array__") or is_file(entry)):
            raise UserError("this is no audio", got=repr(entry)[:100], allowed=_ALLOWED)
    return entries


def _is_numbers(entry) -> bool:
    """Whether a list is of numbers, the samples of one recording."""
    return isinstance(entry, (list, tuple)) and bool(entry) and all(map(_is_number, entry))


def _is_number(entry) -> bool:
    return isinstance(entry, (int, float)) or (hasattr(entry, "__array__") and getattr(entry, "ndim", 1) == 0)


def with_rates(entries: list, sampling_rate) -> tuple[list[np.ndarray], list[int]]:
    """The samples of each recording, and its rate: its own where it has one, else the one that is given. Raises UserError where
    there is none, or a file cannot be decoded."""
    given = list(sampling_rate) if isinstance(sampling_rate, (list, tuple, np.ndarray)) else [sampling_rate] * len(entries)
    if len(given) != len(entries):
        raise UserError("not one sampling rate for each waveform", got=f"{len(given)} rates for {len(entries)} waveforms")
    samples, rates = [], []
    for entry, rate in zip(entries, given):
        if isinstance(entry, dict):
            entry, rate = entry["array"], entry["sampling_rate"]
        elif is_file(entry):
            entry, rate = audio_of(entry)
        if rate is None:
            raise UserError("the sampling rate of audio is missing", allowed="such as 16000", fix="pass sampling_rate=")
        samples.append(np.asarray(entry))
        rates.append(rate)
    return samples, rates
