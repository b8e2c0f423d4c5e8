"""One rank of tests/distributed/test_masked_language_ranks.py: hidden words on two ranks against one process without DeepSpeed.

Shapes: B samples of the global batch, L tokens of a text.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from alternating_worker import compare, reference
from small_run import VOCABULARY, make_batch, make_run

from imp_ds.config import RunConfig
from imp_ds.modalities.masking import IGNORED
from imp_ds.objectives import MaskedLanguage
from imp_ds.parallel.groups import is_main
from imp_ds.tasks import Batch, Source, Task, TextView, Views
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import start_process_group

SIZE, LENGTH = 8, 12
CASES = [("zero2", 1, False), ("zero2", 2, False), ("zero3", 1, False), ("zero3", 2, True)]  # file, micro-batches, checkpointing


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
    return Batch("words", {"text": inputs}, {"words": target_BL.where(hidden_BL, torch.full_like(target_BL, IGNORED))})


def compare_all(out: str) -> None:
    """Writes, by case, what `alternating_worker.compare` gives."""
    expected = reference(words_run(), words_batch)
    device = start_process_group(60)
    results = {}
    for name, micro_batches, checkpointing in CASES:
        ds = ds_config.load(ds_config.FOLDER / f"cpu_{name}.json")
        prepare = (lambda model: model.gradient_checkpointing_enable()) if checkpointing else None
        results[f"{name} {micro_batches}"] = compare(words_run(), ds, expected, device, words_batch, micro_batches, prepare)
    if is_main():
        Path(out).write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # a normal end of many engines sometimes aborts in their threads, after all is done
