"""ImpFeatureExtractor: sounds of any rate, length and number of channels to log-mel patches."""

from dataclasses import asdict

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature

from imp_ds.errors import UserError
from imp_ds.modalities import audio
from imp_ds.modalities.log_mel import LogMel
from imp_ds.models.imp.image_processing_imp import one_for_all
from imp_ds.models.imp.keywords import check_keywords, keywords_of


class ImpFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel spectrograms of `seconds` of sound, standardised by fixed numbers and cut into patches.

    Args:
        log_mel: the fields of `imp_ds.modalities.log_mel.LogMel`; what is left out has the default there.
        seconds: length of the sound; longer ones are cut, shorter ones padded with silence.
        patch: spectrogram frames and mel bins of a patch, as `ImpConfig.audio_patch`.
        mean, std: log-mel values become (value - mean) / std.
        do_normalize: whether each sound is brought to mean 0 and variance 1 first, so that its loudness does not count.
        crop: "start", "center" or "random": where a long sound is cut and a short one lies.
    """

    model_input_names = list(audio.INPUT_NAMES)

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
        """Sounds to a BatchFeature of `input_features` float32 [B, L, P] and `feature_positions` [B, L, 2].

        Args:
            raw_speech: one array ([samples], or with channels on the shorter axis), or a list of such arrays.
            sampling_rate: of the sounds: one number, or one for each sound.
            seconds, crop: instead of the stored ones.
            drop_rate, rng: DropToken and random crops, for training.

        Raises:
            UserError: something that is no sound, or no sampling rate.
        """
        check_keywords("the feature extractor", unknown, keywords_of(self.__call__))
        sounds = sound_list(raw_speech)
        if sampling_rate is None:
            raise UserError("the sampling rate of the sounds is missing", allowed="such as 16000", fix="pass sampling_rate=")
        rates = list(sampling_rate) if isinstance(sampling_rate, (list, tuple, np.ndarray)) else [sampling_rate] * len(sounds)
        if len(rates) != len(sounds):
            raise UserError("there is not one sampling rate for each sound", got=f"{len(rates)} rates for {len(sounds)} sounds")
        inputs = audio.preprocess(
            sounds, rates, self.transform, self.seconds if seconds is None else seconds, self.patch,
            mean=self.mean, std=self.std, do_normalize=self.do_normalize, crop=crop or self.crop, drop_rate=drop_rate,
            rngs=one_for_all(rng, sounds),
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


def sound_list(raw_speech) -> list[np.ndarray]:
    """The batch as a list of arrays; a list of numbers is one sound."""
    if isinstance(raw_speech, (list, tuple)):
        if raw_speech and all(isinstance(item, (list, tuple, np.ndarray)) or hasattr(item, "__array__") for item in raw_speech):
            if not all(np.ndim(item) == 0 for item in raw_speech):
                return [np.asarray(item) for item in raw_speech]
        elif not raw_speech or not all(isinstance(item, (int, float)) for item in raw_speech):
            raise UserError("this is no list of sounds", got=repr(raw_speech)[:100], allowed="arrays of samples")
        return [np.asarray(raw_speech)]
    if not hasattr(raw_speech, "__array__"):
        raise UserError("this is no sound", got=repr(raw_speech)[:100], allowed="an array of samples, or a list of such arrays")
    return [np.asarray(raw_speech)]
