"""Audio: recordings and the audio of videos, all that the program asks about them."""

import math

import numpy as np

from imp_ds.errors import UserError
from imp_ds.modalities.audio import patches
from imp_ds.modalities.audio.augmentation import SpecMasks
from imp_ds.modalities.audio.pictures import audio_pictures
from imp_ds.modalities.audio.view import AudioAugmentation, AudioOptions, AudioSettings, AudioView
from imp_ds.modalities.modality import PatchModality, Preprocessed, register_modality


@register_modality
class Audio(PatchModality):
    """Log-mel spectrograms, cut into patches of time and frequency."""

    kind, is_standard = "audio", True
    item_kinds = ("audio",)
    what = "recordings, and the audio of videos"
    column = "column of the recording, or of a video with audio"
    missing = "no audio"
    example = 'audio=[audio], sampling_rate=rate'
    inputs = patches.INPUT_NAMES
    part = "feature_extractor"
    View, Options, Settings, Augmentation = AudioView, AudioOptions, AudioSettings, AudioAugmentation
    axes = 2
    length_fact, shows_samples = "audio seconds", True

    def decode(self, raws, view, rngs, cache, augment, wanted):
        from imp_ds.modalities.audio.windows import read_recordings

        return read_recordings(raws, view.seconds, rngs, cache, augment.speed, wanted.settings)

    def windows(self, raw, view, cache, wanted):
        from imp_ds.modalities.audio.windows import read_windows

        return read_windows(raw, view.seconds, cache, wanted.settings)

    def preprocess(self, samples, view, part, rngs, *, augment, text, empty):
        """Features are float16 here: half the bytes on the way to the device."""
        crop = "center" if part.crop == "random" and rngs is None else part.crop
        masks = SpecMasks(augment.spec_masks, augment.spec_time, augment.spec_frequency)
        waveforms, rates = zip(*samples)
        inputs = patches.preprocess(
            list(waveforms), list(rates), part.transform, view.seconds, part.patch, mean=part.mean, std=part.std,
            do_normalize=part.do_normalize, crop=crop, masks=masks if rngs is not None and masks.count else None,
            drop_rate=0.0 if rngs is None else view.drop_rate, rngs=rngs, dtype=np.float16, empty=empty,
        )  # fmt: skip
        return Preprocessed(inputs)

    def embedding(self, config):
        return patches.AudioEmbedding(config)

    def grid(self, config, tokens, values):
        steps, bands = self.buckets(config)
        if tokens % bands or tokens // bands > steps:
            raise UserError(
                "the positions of patches cannot be derived from their number", got=f"{tokens} patches",
                allowed=f"multiples of {bands}, the patches of all mel bins, up to {steps * bands}",
                fix="give feature_positions, as ImpProcessor returns them",
            )  # fmt: skip
        return tokens // bands, bands

    def tokens(self, view, config, settings, path):
        # every hop_length samples give one frame; silence fills the last patch
        hops, long = math.ceil(round(view.seconds * settings.sampling_rate) / settings.hop_length), self.patch(config)[0]
        size = long * math.ceil(hops / long), settings.mel_bins
        return self.count(size, config, [f"{path}.seconds", "data.audio.mel_bins"])

    def values(self, view, config):
        return math.prod(self.patch(config))

    def facts(self, raw):
        from imp_ds.modalities.audio.facts import audio_facts

        return audio_facts(raw)

    def pictures(self, inputs, view, part):
        return audio_pictures(inputs, part.patch, part.feature_size)

    def parts(self, sample, view):
        return [("waveform", sample)]
