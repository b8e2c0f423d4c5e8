"""The command `data show`: one page of what the model is fed, rebuilt from batches as the loader makes them."""

import base64
import io
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from imp_ds.commands.check.command import processor_of
from imp_ds.commands.report.page import page, picture, safe
from imp_ds.config import RunConfig
from imp_ds.data.corpus import open_corpus
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.order.subset import spread_over
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.modalities.views import Views
from imp_ds.tasks import Batch, Task
from imp_ds.terminal.stage_progress import StageProgress
from imp_ds.train.recording.first_samples import first_occurrences, shown_parts
from imp_ds.train.recording.samples import batch_pictures, learned_texts
from imp_ds.train.schedule import build_schedule
from imp_ds.written_files import write_result

_ROWS = 2000  # of each source, from which a tokenizer and the mean of the spectrograms are made where there is no run
_MASK = "▒"  # a hidden word
_STYLE = """
audio { display: block; width: 15rem; max-width: 100%; height: 2rem }
figure p { margin: .4rem 0 0; color: var(--ink); white-space: pre-wrap; overflow-wrap: anywhere; max-width: 34rem }
figure p b { color: var(--soft) } figcaption { margin-top: .4rem; max-width: 34rem; overflow-wrap: anywhere }
figcaption small { color: var(--soft); display: block }
"""


def show(run: RunConfig, split: str, samples: int, trained: Path | None, out: Path) -> str:
    """Write the page to `out`; returns a line that says so.

    Args:
        samples: of each task and view.
        trained: folder of a run whose processor is taken; None makes one from a part of the corpus.

    Raises UserError for a corpus that cannot be read, and a file that cannot be written.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise UserError("the page cannot be written there", got=out, allowed="a file in a folder that exists")
    with StageProgress() as progress:
        readers = open_corpus(run, split, progress)
    few = {name: [spread_over(reader, _ROWS) for reader in of_task] for name, of_task in readers.items()}
    processor = processor_of(run, few, trained)
    run = run.model_copy(update={"tasks": [_one_by_one(task) for task in run.tasks]})
    schedule = build_schedule(run.train.schedule, run.tasks, run.train.seed)
    shape = dict(seed=run.data.seed, window=run.data.window, cache_mb=0, decoding=run.data.decoding)
    batches = StepBatches(run.tasks, schedule, readers, Collator(processor), **shape)
    sections = []
    for name, step in first_occurrences(batches).items():
        task = run.task(name)
        for view in range(len(task.all_views)):
            sections.append(_section(batches, processor, task, view, step, samples))
    write_result(out, page(f"{run.name}: what the model is fed ({split})", "".join(sections), _STYLE))
    return f"wrote {out}: {len(sections)} views of {len(run.tasks)} tasks"


def _one_by_one(task: Task) -> Task:
    """The task with a conversation in each row of a batch, where it packs several: each has a card of its own."""
    plain = [
        view if view.messages is None else view.model_copy(update={"messages": view.messages.model_copy(update={"pack": 1})})
        for view in task.all_views
    ]
    return task.model_copy(update={"views": plain[0], "additional_views": plain[1:]})


def _section(batches: StepBatches, processor, task: Task, view: int, step: int, samples: int) -> str:
    batch = batches.first_of(step, samples, view)
    if isinstance(batch, UserError):
        raise batch
    views = task.all_views[view]
    count = len(batch.report.keys)
    shown = shown_parts(batches, task, views, step, samples) or [[]] * count
    readers = batches.readers[task.name]
    cards = [_card(batch, position, views, processor, readers, shown[position]) for position in range(count)]
    number = f", view {view}" if len(task.all_views) > 1 else ""
    facts = [f"{modality}: {_described(modality, views, batch)}" for modality in views.names()]
    if batch.report.rejected:
        facts.append(f"left out on the way: {len(batch.report.rejected)}")
    return f"<h2>{safe(task.name)}{number}</h2><p>{safe('; '.join(facts))}</p><div class=row>{''.join(cards)}</div>"


def _described(modality: str, views: Views, batch: Batch) -> str:
    """The view, the tokens that it gives, and the share of them that is padding."""
    tokens = next(iter(batch.inputs[modality].values())).shape[1]
    changed = ", ".join(f"{name} {value}" for name, value in getattr(views, modality).model_dump(exclude_defaults=True).items())
    return f"{changed or 'as by default'} ({tokens} tokens, {batch.report.padding[modality]:.0%} padding)"


def _card(batch: Batch, position: int, views: Views, processor, readers: list[Reader], shown: list) -> str:
    one = batch.map(lambda x: x[position : position + 1])
    parts = [_picture(drawn) for drawn in batch_pictures(one, views, processor, 1).values()]
    parts += [_PARTS[kind](value) for kind, value in shown]
    lines = [_caption(one, processor.tokenizer)] if "text" in one.inputs else []
    if "labels" in one.targets:
        lines += [f"learned: <b>{safe(text)}</b>" for text in learned_texts(one, processor.tokenizer, 1)]
    if "label" in one.targets and one.targets["label"].dim() == 1:
        label, names = int(one.targets["label"]), readers[0].class_names
        lines.append(f"class {label}" + (f": {safe(names[label])}" if names and label < len(names) else ""))
    lines.append(f"<small>{safe(batch.report.keys[position])}</small>")
    return f"<figure>{''.join(parts)}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _caption(one: Batch, tokenizer) -> str:
    """What the tokens say; under hidden words, what they were."""
    ids_L = one.inputs["text"]["input_ids"][0][one.inputs["text"]["attention_mask"][0] > 0]
    text = safe(tokenizer.decode(ids_L.tolist(), skip_special_tokens="token_ids" not in one.targets))
    if "token_ids" not in one.targets:
        return text
    text = text.replace(safe(tokenizer.mask_token or _MASK), f"<b>{_MASK}</b>")
    hidden_L = one.targets["token_ids"][0]
    return f"{text}<br>hidden: <b>{safe(tokenizer.decode(hidden_L[hidden_L >= 0].tolist()))}</b>"


def _picture(picture_HW3: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(picture_HW3).save(out, "PNG")
    return picture(out.getvalue())


def _waveform(waveform: tuple[np.ndarray, int]) -> str:
    out, (samples_N, rate) = io.BytesIO(), waveform
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples_N, -1, 1) * 32767).astype("<i2").tobytes())
    return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(out.getvalue()).decode()}"></audio>'


# a part of a decoded sample, by its kind
_PARTS = {
    "speaker": lambda name: f"<p><b>{safe(name)}</b></p>", "text": lambda text: f"<p>{safe(text)}</p>",
    "picture": _picture, "waveform": _waveform,
}  # fmt: skip
