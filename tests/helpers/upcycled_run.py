"""A run of Uni-MoE whose language model comes from a folder, with made-up batches of tokens.

Shapes: B samples, L tokens.
"""

from pathlib import Path

import torch

from helpers.language_models import VOCAB, language_model
from imp_ds.config import OptimizerSettings, RunConfig, TrainSettings
from imp_ds.families import family_of
from imp_ds.families.uni_moe.settings import UniMoeSettings
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.tasks import Batch, Source, Task

LENGTH, SAMPLES, SAME = 12, 8, 1


def save_base(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes) -> Path:
    """A tiny language model's folder."""
    language_model(kind, **changes).to(dtype).save_pretrained(folder)
    return folder


def make_run(
    base: Path, *, ep_size: int = 1, trainable: list[str] | None = None, checkpointing: bool = False, **model
) -> RunConfig:
    source = Source(path="none", messages="messages")
    task = Task(
        name="talk",
        source=source,
        views=Views(messages=MessagesView(length=LENGTH)),
        objectives=[NextToken()],
        batch_size=SAMPLES,
    )
    return RunConfig(
        name="upcycled",
        model=UniMoeSettings(**dict(language_model=str(base), num_experts=4, expert_noise=0.3) | model),
        data=dict(vocab_size=VOCAB),
        tasks=[task],
        train=TrainSettings(steps=10, ep_size=ep_size, trainable=trainable, gradient_checkpointing=checkpointing),
        optimizer=OptimizerSettings(clip=0.0, weight_decay=1e-2),
    )


def config_of(run: RunConfig):
    return family_of(run).config(run)


def batch_of(step: int) -> Batch:
    """Texts of 3 to 12 tokens with the loss on some of them, in the second half of the batch on a single one. In a step of an odd
    number all tokens are the same, and so are their experts in each layer: attention mixes what is equal."""
    draw = torch.Generator().manual_seed(step)
    valid_BL = torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (SAMPLES, 1), generator=draw)
    ids_BL = torch.randint(0, VOCAB, (SAMPLES, LENGTH), generator=draw)
    if step % 2:
        ids_BL[:] = SAME
    supervised_BL = valid_BL & (torch.rand(SAMPLES, LENGTH, generator=draw) < 0.6)
    supervised_BL[SAMPLES // 2 :, 2:] = False
    supervised_BL[:, 1] = True
    labels_BL = torch.where(supervised_BL, ids_BL, -100)
    return Batch("talk", {"messages": {"input_ids": ids_BL, "attention_mask": valid_BL.long()}}, {"labels": labels_BL})
