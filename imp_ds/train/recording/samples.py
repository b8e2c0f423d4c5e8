"""What the model is fed, made visible again: pictures and captions of a Batch.

Nothing is read from the corpus here, so what is shown is what went in, preprocessing mistakes included.

Shapes: H height, W width.
"""

import html
import re

import numpy as np

from imp_ds.modalities.modality import get_modality, part_of
from imp_ds.modalities.views import Views
from imp_ds.tasks import Batch
from imp_ds.terminal.printable import printable

_REPEATED = re.compile(r"(<[^<>\s]+>)\1+")


def batch_pictures(batch: Batch, views: Views, processor, count: int) -> dict[str, np.ndarray]:
    """Pictures of the first `count` samples, as their modalities draw them, by name; uint8 [H, W, 3]."""
    found = {}
    for name, inputs in batch.inputs.items():
        first = {key: tensor[:count] for key, tensor in inputs.items()}
        found |= get_modality(name).pictures(first, getattr(views, name), part_of(processor, name))
    return found


def batch_captions(batch: Batch, tokenizer, count: int) -> str | None:
    """A Markdown table of the first `count` samples: what the tokens say, and the label; None without either."""
    columns = {}
    if "text" in batch.inputs:
        ids = batch.inputs["text"]["input_ids"][:count]
        columns["caption, from its tokens"] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    if "labels" in batch.targets:
        inputs = batch.inputs["messages"]
        kept = inputs["attention_mask"][:count] > 0
        ids = [ids_L[kept_L] for ids_L, kept_L in zip(inputs["input_ids"], kept)]
        columns["conversation, from its tokens"] = [in_brief(text) for text in tokenizer.batch_decode(ids)]
        columns["learned of it"] = learned_texts(batch, tokenizer, count)
    label = batch.targets.get("label")
    if label is not None and label.dim() == 1:
        columns["label"] = label[:count].tolist()
    if not columns:
        return None
    return sample_table(columns)


def learned_texts(batch: Batch, tokenizer, count: int) -> list[str]:
    """What of the first `count` conversations is to be generated, by their labels."""
    labels_BL = batch.targets["labels"][:count]
    return [in_brief(tokenizer.decode(labels_L[labels_L >= 0])) for labels_L in labels_BL]


def in_brief(text: str) -> str:
    """A text in which a placeholder that stands many times in a row stands once, with their number."""
    return _REPEATED.sub(lambda found: f"{found[1]} x {len(found[0]) // len(found[1])} ", text)


def _cell(value) -> str:
    """As a cell of a table, of which it can end neither the cell nor the line, and without markup."""
    return html.escape(printable(value), quote=False).replace("|", "\\|")


def sample_table(columns: dict[str, list]) -> str:
    """A Markdown table with a row for each sample."""
    lines = ["| sample | " + " | ".join(columns) + " |", "|" + " --- |" * (len(columns) + 1)]
    for number, row in enumerate(zip(*columns.values()), start=1):
        lines.append(f"| {number} | " + " | ".join(_cell(cell) for cell in row) + " |")
    return "\n".join(lines)
