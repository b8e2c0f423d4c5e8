"""Checkpoints that are complete or absent, that training does not wait for, and that do not know how many ranks wrote them.

    checkpoints/step_00001000/   of each rank model-00000, optimizer-00000, ema-00000, random-00000.safetensors;
                                 buffers-00000; index.json, state.json, references.json, manifest.json
    checkpoints/frozen/          what the run does not train and was loaded from no file, each file under its hash
    checkpoints/latest           the name of the newest complete one

A rank writes the ranges of weights and moments that its optimizer holds, as float32 safetensors by parameter name; the index
lists which file has which elements of a parameter, so any number of ranks, ep_size and ZeRO stage can read them. DeepSpeed's
own format is a pickle, is published before all ranks have written, and wants three matrices in an expert. What is not trained is
referred to, by path and sha256; persistent buffers are written as they are; a rank's random state serves as many ranks again.

`Writer` saves in the background; `newest` finds a complete one; `Reader` reads it, and needs no DeepSpeed.
"""

from pathlib import Path

from imp_ds.train.checkpoint.files import FOLDER, FORMAT, folder_name, steps, summary
from imp_ds.train.checkpoint.frozen import Frozen, refer_to_frozen
from imp_ds.train.checkpoint.reader import Reader, newest, verify
from imp_ds.train.checkpoint.writer import Writer

__all__ = [
    "FOLDER", "FORMAT", "Frozen", "Reader", "Writer", "folder_name", "newest", "refer_to_frozen", "save", "steps", "summary",
    "verify",
]  # fmt: skip


def save(engine, output_dir: Path, step: int, state: dict, keep: int, frozen: Frozen | None = None) -> Path:
    """Save one checkpoint and wait until it is published; all ranks call it. Raises UserError on all of them."""
    writer = Writer(engine, output_dir, keep=keep, frozen=frozen)
    writer.save(step, state)
    return writer.wait()
