"""A run of captions and pairs, and its batches.

Shapes: B samples of the global batch, T tokens of a caption.
"""

import torch

from helpers.small_run import MARKS, VOCABULARY, make_batch, make_run
from imp_ds.config import RunConfig
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.objectives import Captioning
from imp_ds.tasks import Batch

SIZE, LENGTH = 8, 12
GATES = {
    "attribute": dict(gate="attribute", conditional_linears=["qkv", "out", "up", "down"]),
    "token": dict(router="top_k", drop_tokens=False),
}


def caption_run(gate: str, ep_size: int = 1) -> RunConfig:
    """Captions of images, and images with texts, between which the head is idle."""
    run = make_run(ep_size=ep_size, **GATES[gate])
    other = run.task("image_text")
    run.tasks = [other.model_copy(update={"name": "captions", "objectives": [Captioning(modality="vision")]}), other]
    return run


def caption_batch(step: int) -> Batch:
    """The global batch of a step: in turn of captions of 1 to 8 words, those of the second rank longer, and of pairs."""
    if step % 2:
        return make_batch(3 * step)
    batch = make_batch(3 * step)
    draw = torch.Generator().manual_seed(step)
    target_BT = torch.randint(1, VOCABULARY - 2, (SIZE, LENGTH), generator=draw)
    length_B1 = torch.arange(1, SIZE + 1)[:, None]
    target_BT[torch.arange(LENGTH) == length_B1] = MARKS.eos_token_id
    target_BT[torch.arange(LENGTH) > length_B1] = IGNORED
    return Batch("captions", batch.inputs, {"caption": target_BT})
