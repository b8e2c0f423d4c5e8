"""From decoded samples to a Batch, by the same preprocessing that inference uses.

A task's view of a modality (resolution, frames, seconds, length, share of dropped tokens) overrides the processor's own.
Each sample brings its own random generator, so that it looks the same whichever rank or worker prepares it, and in
whatever company. What leaves a worker is contiguous and small: pixels as uint8, spectrograms as float16; the model brings them
to its own type on the device.
"""

from collections.abc import Callable

import numpy as np
import torch

from imp_ds.modalities import audio, marking, text, vision
from imp_ds.modalities.augmentation import SpecMasks
from imp_ds.modalities.pixels import size_pair
from imp_ds.tasks import AudioView, Augmentation, Batch, BatchReport, TextView, Views, VisionView

_UNCHANGED = Augmentation()
_LABEL = "label"
_WORDS = "words"
_CAPTION = "caption"


class Collator:
    """Makes the batches of all tasks.

    Args:
        processor: an ImpProcessor, of which image_processor, feature_extractor and tokenizer are used.
    """

    def __init__(self, processor):
        self.processor = processor

    def has_tokens(self, caption: str) -> bool:
        """Whether the tokenizer makes a token of a caption, beside the marks that it puts around every text."""
        return text.has_tokens(caption, self.processor.tokenizer)

    def __call__(
        self, task: str, views: Views, samples: list[dict], rngs: list[np.random.Generator] | None = None, *,
        augment: Augmentation = _UNCHANGED, mask_rate: float = 0.0, marked: bool = False,
        target_ids: bool = False, empty: Callable = np.empty,
    ) -> Batch:  # fmt: skip
        """Batch the samples of `decode`.

        Args:
            rngs: one generator for each sample, for what training draws (DropToken, masks, the place of a cut); None, as in
                evaluation, draws nothing, drops no token and hides no word.
            augment: what training changes of spectrograms; pictures have been changed when they were decoded.
            mask_rate: share of the words that are hidden; `targets["words"]` has them then.
            marked: whether each text is to have a mark where its answer is read (`imp_ds.modalities.marking`).
            target_ids: whether captions are generated; `targets["caption"]` has their target ids then.
            empty: makes the arrays of pictures and sounds, as `numpy.empty` does; for memory of one's own.
        """
        inputs, targets, padding = {}, {}, {}
        if views.vision is not None:
            inputs["vision"] = self._vision(views.vision, [sample["vision"] for sample in samples], rngs, empty)
            padding["vision"] = 0.0
        if views.audio is not None:
            inputs["audio"] = self._audio(views.audio, [sample["audio"] for sample in samples], rngs, augment, empty)
            padding["audio"] = 0.0
        if views.text is not None:
            found = self._text(views.text, [sample["text"] for sample in samples], rngs, mask_rate, marked)
            targets |= {name: found.pop(name) for name in (_WORDS,) if name in found}
            inputs["text"] = found
            if target_ids:
                captions = text.preprocess_captions([s["text"] for s in samples], self.processor.tokenizer, views.text.length)
                targets[_CAPTION] = torch.from_numpy(captions)
            padding["text"] = 1.0 - float(found["attention_mask"].float().mean())
        if _LABEL in samples[0]:
            targets[_LABEL] = torch.tensor([sample[_LABEL] for sample in samples], dtype=torch.int64)
        return Batch(task, inputs, targets, report=BatchReport(padding=padding))

    def _vision(self, view: VisionView, clips: list[np.ndarray], rngs, empty: Callable) -> dict[str, torch.Tensor]:
        settings = self.processor.image_processor
        return _tensors(
            vision.preprocess(
                clips, view.frames, (view.height, view.width), settings.patch, keep_aspect=view.keep_aspect,
                largest=settings.largest and size_pair(settings.largest),
                drop_rate=0.0 if rngs is None else view.drop_rate, rngs=rngs, empty=empty,
            )
        )  # fmt: skip

    def _audio(self, view: AudioView, sounds: list[tuple[np.ndarray, int]], rngs, augment: Augmentation, empty: Callable):
        settings = self.processor.feature_extractor
        crop = "center" if settings.crop == "random" and rngs is None else settings.crop
        masks = SpecMasks(augment.spec_masks, augment.spec_time, augment.spec_frequency)
        samples, rates = zip(*sounds)
        return _tensors(
            audio.preprocess(
                list(samples), list(rates), settings.transform, view.seconds, settings.patch, mean=settings.mean,
                std=settings.std, do_normalize=settings.do_normalize, crop=crop,
                masks=masks if rngs is not None and masks.count else None, drop_rate=0.0 if rngs is None else view.drop_rate,
                rngs=rngs, dtype=np.float16, empty=empty,
            )
        )  # fmt: skip

    def _text(self, view: TextView, captions: list[str], rngs, mask_rate: float, marked: bool) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        if marked:
            return _tensors(marking.preprocess_marked(captions, tokenizer, view.length))
        if mask_rate and rngs is not None:
            return _tensors(text.preprocess_masked(captions, tokenizer, view.length, mask_rate, rngs))
        return _tensors(text.preprocess(captions, tokenizer, view.length))


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
