"""Checkpoints that are whole or not there, that training does not wait for, and that do not know how many ranks wrote them.

    checkpoints/step_00001000/   model-00000.safetensors, optimizer-00000.safetensors, ... of each rank,
                                 index.json, state.json, manifest.json
    checkpoints/latest           the name of the newest whole one

A rank writes the ranges of weights and moments that its optimizer holds, as float32 safetensors by parameter name; the index
says which file has which elements of a parameter, so any number of ranks, ep_size and ZeRO stage can read them. DeepSpeed's
own format is a pickle, is published before all ranks have written, and wants three matrices in an expert.

`Writer` saves in the background; `newest` finds a whole one; `Reader` reads it, and needs no DeepSpeed.
"""

from pathlib import Path

from imp_ds.train.checkpoint.files import FOLDER, FORMAT, folder_name, steps
from imp_ds.train.checkpoint.reader import Reader, newest, verify
from imp_ds.train.checkpoint.writer import Writer

__all__ = ["FOLDER", "FORMAT", "Reader", "Writer", "folder_name", "newest", "save", "steps", "verify"]


def save(engine, output_dir: Path, step: int, state: dict, keep: int) -> Path:
    """Save one checkpoint and wait until it is published; all ranks call it. Raises UserError on all of them."""
    writer = Writer(engine, output_dir, keep=keep)
    writer.save(step, state)
    return writer.wait()
