"""`imp_ds data tokenizer RECIPE OUT`: a tokenizer of a recipe's own, trained on the captions of its sources, and how
well it fits them."""

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imp_ds.data.corpus import all_captions, open_corpus, text_readers
from imp_ds.data.reader import Reader
from imp_ds.data.sources import captions
from imp_ds.errors import UserError
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.terminal.stage_progress import StageProgress

_AT_ONCE = 4096  # captions that are counted together: the tokenizer then uses all cores
_WIDTH = 140  # of a table that goes to a file


@dataclass
class Fit:
    """How a tokenizer cuts captions. lengths: tokens of a caption -> how many captions have so many; unknown: captions with a
    token that stands for something it does not know."""

    lengths: Counter[int] = field(default_factory=Counter)
    unknown: int = 0

    def __add__(self, other: "Fit") -> "Fit":
        return Fit(self.lengths + other.lengths, self.unknown + other.unknown)

    @property
    def captions(self) -> int:
        return self.lengths.total()

    @property
    def mean_tokens(self) -> float:
        """Tokens of a caption."""
        return sum(length * count for length, count in self.lengths.items()) / self.captions

    @property
    def coverage(self) -> float:
        """Share of the captions that are known in full."""
        return 1 - self.unknown / self.captions

    def longer(self, length: int) -> int:
        """Captions of more than `length` tokens, which are cut."""
        return sum(count for tokens, count in self.lengths.items() if tokens > length)


def train_on_captions(run, out: Path, vocab_size: int | None = None) -> None:
    """Train a tokenizer on the captions of all sources of a RunConfig, training split; write it to the folder `out`, which
    `data.tokenizer` and AutoTokenizer load; and print its size and how it fits the captions.

    vocab_size: the most tokens; None takes `data.vocab_size`.

    Raises UserError when `out` is neither new nor an empty folder, before anything is read; for a source that cannot be read,
    no captions at all, a vocabulary smaller than their alphabet, and a folder that cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("the folder of the tokenizer is not empty", got=out, allowed="a new or empty folder")
    with StageProgress() as progress:
        readers = open_corpus(run, progress=progress)
    longest = max((views.text.length for task in run.tasks for views in task.all_views if views.text is not None), default=256)
    tokenizer = train_tokenizer(all_captions(readers), vocab_size or run.data.vocab_size, seed=run.data.seed, max_length=longest)
    try:
        tokenizer.save_pretrained(out)
    except OSError as error:
        raise UserError("the tokenizer cannot be written", got=f"{out}: {error.strerror or error}") from error
    fits = {id(reader): measure(tokenizer, captions(reader)) for reader in text_readers(readers)}
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    full = sum(fits.values(), Fit())
    console.print(f"wrote {out}: {len(tokenizer):,} tokens, for --set data.tokenizer={out}", soft_wrap=True)
    console.print(
        f"{full.captions:,} captions: {100 * full.coverage:.2f} % known in full, {full.mean_tokens:.1f} tokens on average"
    )
    console.print(cut_table(run, readers, fits))


def measure(tokenizer, texts: Iterable[str]) -> Fit:
    """How a tokenizer cuts texts, none of which it shortens."""
    fit, texts = Fit(), iter(texts)
    while some := list(islice(texts, _AT_ONCE)):
        for ids in tokenizer(some, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]:
            fit.lengths[len(ids)] += 1
            fit.unknown += tokenizer.unk_token_id in ids
    return fit


def cut_table(run, readers: dict[str, list[Reader]], fits: dict[int, Fit]) -> Table:
    """A row for each text view of each task: its length, and how many of the task's captions are longer.

    fits: of each reader, by its id.
    """
    table = Table("task", "view", "captions", "longer than the view", title="Captions that are cut", title_justify="left")
    for task in run.tasks:
        fit = sum((fits[id(reader)] for reader in readers[task.name] if id(reader) in fits), Fit())
        lengths = {views.text.length for views in task.all_views if views.text is not None}
        for length in sorted(lengths) if fit.captions else ():
            longer = fit.longer(length)
            table.add_row(task.name, f"{length} tokens", f"{fit.captions:,}", f"{longer:,} ({100 * longer / fit.captions:.1f} %)")
    return table
