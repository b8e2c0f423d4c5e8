"""From decoded samples to a Batch, by the same processors that inference uses.

A task's view of a modality (resolution, frames, seconds, length, share of dropped tokens) overrides the processor's own.
Each sample brings its own random generator, so that it looks the same whichever rank or worker prepares it, and in
whatever company.
"""

import numpy as np
import torch

from imp_ds.modalities import text
from imp_ds.tasks import AudioView, Batch, TextView, Views, VisionView


class Collator:
    """Makes the batches of all tasks.

    Args:
        processor: an ImpProcessor, of which image_processor, video_processor, feature_extractor and tokenizer are used.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, task: str, views: Views, samples: list[dict], rngs: list[np.random.Generator] | None = None) -> Batch:
        """Batch the samples of `decode`.

        Args:
            rngs: one generator for each sample, for what training draws (DropToken, the place of a cut); None, as in
                evaluation, draws nothing and drops no token.
        """
        makers = {"vision": self._vision, "audio": self._audio, "text": self._text}
        inputs = {m: makers[m](getattr(views, m), [sample[m] for sample in samples], rngs) for m in views.names()}
        targets = {}
        if "label" in samples[0]:
            targets["label"] = torch.tensor([sample["label"] for sample in samples], dtype=torch.int64)
        return Batch(task, inputs, targets)

    def _vision(self, view: VisionView, clips: list[np.ndarray], rngs) -> dict[str, torch.Tensor]:
        drop_rate = 0.0 if rngs is None else view.drop_rate

        def process(clips, rng):
            settings = dict(size=(view.height, view.width), drop_rate=drop_rate, rng=rng, return_tensors="pt")
            if view.frames == 1:
                return self.processor.image_processor([clip[0] for clip in clips], **settings)
            return self.processor.video_processor(clips, frames=view.frames, **settings)

        return _batched(process, clips, rngs if drop_rate else None)

    def _audio(self, view: AudioView, sounds: list[tuple[np.ndarray, int]], rngs) -> dict[str, torch.Tensor]:
        extractor = self.processor.feature_extractor
        drop_rate = 0.0 if rngs is None else view.drop_rate
        drawn = drop_rate or extractor.crop == "random"
        crop = "center" if extractor.crop == "random" and rngs is None else extractor.crop

        def process(sounds, rng):
            samples, rates = zip(*sounds)
            settings = dict(seconds=view.seconds, crop=crop, drop_rate=drop_rate, rng=rng, return_tensors="pt")
            return extractor(list(samples), list(rates), **settings)

        return _batched(process, sounds, rngs if drawn else None)

    def _text(self, view: TextView, captions: list[str], rngs) -> dict[str, torch.Tensor]:
        encoded = text.preprocess(captions, self.processor.tokenizer, view.length)
        return {name: torch.as_tensor(encoded[name]) for name in text.INPUT_NAMES}


def _batched(process, items: list, rngs: list[np.random.Generator] | None) -> dict[str, torch.Tensor]:
    """All items in one call where nothing is drawn, else one call for each with its own generator."""
    if rngs is None:
        return dict(process(items, None))
    parts = [process([item], rng) for item, rng in zip(items, rngs, strict=True)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
