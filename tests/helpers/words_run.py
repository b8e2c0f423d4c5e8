"""A run of texts of which tokens are masked, and its batches.

Shapes: B samples of the global batch, L tokens of a text.
"""

import torch

from helpers.small_run import VOCABULARY, make_batch, make_run
from imp_ds.config import RunConfig
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.objectives import MaskedLanguage
from imp_ds.tasks import Batch, Source, Task

SIZE, LENGTH = 8, 12


def words_run() -> RunConfig:
    """Texts alone, and images with texts, between which the table of words is shared and the head is idle."""
    words = Task(
        name="words", source=Source(path="none", text="t"), views=Views(text=TextView(length=LENGTH)),
        objectives=[MaskedLanguage(rate=0.3)], batch_size=SIZE,
    )  # fmt: skip
    run = make_run(num_experts=0)
    run.tasks = [words, run.task("image_text")]
    return run


def words_batch(step: int) -> Batch:
    """The global batch of a step: in turn of images with texts, and of texts of which 0 to 7 tokens are hidden, more of them on
    the second rank."""
    if step % 2:
        return make_batch(3 * step)
    draw = torch.Generator().manual_seed(step)
    target_BL = torch.randint(1, VOCABULARY, (SIZE, LENGTH), generator=draw)
    hidden_BL = torch.rand(SIZE, LENGTH, generator=draw).argsort(1) < torch.arange(SIZE)[:, None]
    read_BL = target_BL.where(~hidden_BL, torch.zeros_like(target_BL))
    inputs = dict(input_ids=read_BL, attention_mask=torch.ones_like(read_BL))
    return Batch("words", {"text": inputs}, {"token_ids": target_BL.where(hidden_BL, torch.full_like(target_BL, IGNORED))})
