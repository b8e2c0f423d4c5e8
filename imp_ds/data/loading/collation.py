"""From decoded samples to a Batch, by the same preprocessing that inference uses.

A task's view of a modality (resolution, frames, seconds, length, share of dropped tokens) overrides the processor's own.
Each sample brings its own random generator, so that it looks the same whichever rank or worker prepares it, and in
whatever company. What leaves a worker is contiguous and small: pixels as uint8, spectrograms as float16; the model brings them
to its own type on the device.
"""

from collections.abc import Callable

import numpy as np
import torch

from imp_ds.modalities.modality import TextNeeds, get_modality, part_of
from imp_ds.modalities.text import tokens
from imp_ds.modalities.views import Augmentation, Views
from imp_ds.tasks import Batch, BatchReport

_LABEL = "label"


class Collator:
    """Makes the batches of all tasks.

    Args:
        processor: of the run's model; it has what preprocesses each modality (`Modality.part`).
        features: what towers have made of media, as that of `Wanted`.
    """

    def __init__(self, processor, features=None):
        self.processor, self.features = processor, features

    def has_tokens(self, caption: str) -> bool:
        """Whether the tokenizer makes a token of a caption, beside the special ones that it puts around every text."""
        return tokens.has_tokens(caption, self.processor.tokenizer)

    def conversation_tokens(self, conversation: list[dict]) -> int:
        """How many token ids the processor makes of a decoded conversation, with those of its media."""
        return self.processor.conversations.conversation_tokens(conversation)

    def __call__(
        self, task: str, views: Views, samples: list[dict], rngs: list[np.random.Generator] | None = None, *,
        augment: Augmentation | None = None, text: TextNeeds = TextNeeds(), empty: Callable = np.empty,
    ) -> Batch:  # fmt: skip
        """Batch the samples of `decode`.

        Args:
            rngs: one generator for each sample, for what training draws (DropToken, masks, the place of a cut); None, as in
                evaluation, draws nothing, drops no token and masks no word.
            augment: what training changes at random and is not changed in decoding; None: nothing.
            text: what is needed of texts: `targets["token_ids"]` has the ids of masked tokens, `targets["caption"]` those to be
                generated.
            empty: makes large arrays, as `numpy.empty` does; for memory of one's own.
        """
        augment = Augmentation() if augment is None else augment
        inputs, targets, padding = {}, {}, {}
        for name in views.names():
            own, view = [sample[name] for sample in samples], getattr(views, name)
            part = part_of(self.processor, name)
            found = get_modality(name).preprocess(own, view, part, rngs, augment=augment, text=text, empty=empty)
            inputs[name], padding[name] = _tensors(found.inputs), found.padding
            targets |= _tensors(found.targets)
        if _LABEL in samples[0]:
            targets[_LABEL] = torch.tensor([sample[_LABEL] for sample in samples], dtype=torch.int64)
        return Batch(task, inputs, targets, report=BatchReport(padding=padding))


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
