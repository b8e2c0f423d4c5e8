"""`imp_ds embed MODEL FOLDER|RECIPE OUT.parquet`: the vector of each file, or of each sample of a recipe's sources.

Parts of the work are dealt to the ranks in turn; each writes its own, and rank 0 joins them.
"""

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path

from imp_ds.commands.exported_model import start_ranks
from imp_ds.commands.vectors.encoder import Encoder
from imp_ds.commands.vectors.items import FolderItems, Item, RecipeItems
from imp_ds.commands.vectors.vector_file import StagedParts, read_facts, rejected_path
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.parallel.groups import barrier, is_main, on_main, rank, world_size
from imp_ds.terminal.printable import is_text
from imp_ds.terminal.stage_progress import StageProgress

ROWS = 256  # files or samples of a row group


def embed(
    model_path: Path, source: Path | RunConfig, out: Path, *, split: str = "test", task: str | None = None, rows: int = ROWS
) -> None:  # fmt: skip
    """Write the vectors of all items to the Parquet file `out`, and what was left out to OUT.rejected.jsonl.

    Args:
        model_path: a folder that `export` wrote.
        source: a folder of media files and texts; or a run, of whose sources the samples of `split` are taken.
        task: whose views and condition are taken; None: as `Encoder` without one.
        rows: files or samples of a row group, after each of which a process that is killed can be gone on from.

    A file that is complete already is left as it is. Every rank that a launcher started calls it. Raises UserError when nothing
    can be embedded, and for an `out` that `embed` has not written.
    """
    start_ranks()
    on_main(lambda: _check_output(out), "the vectors cannot be written")
    encoder = Encoder(model_path, task)
    listing = RecipeItems(source, split, encoder.modalities) if isinstance(source, RunConfig) else FolderItems(source)
    digest = _digest({"model": encoder.hash, "task": task, "rows": rows, "items": listing.facts()})
    if out.is_file() and read_facts(out)["plan"] == digest:
        print(f"{out} is complete already: the same model, the same items" if is_main() else "", end="\n" * is_main())
        return
    staged = StagedParts(out, {"digest": digest})
    on_main(staged.begin, "the vectors cannot be written")
    on_main(lambda: _write_parts(encoder, listing, staged, rows), "the vectors cannot be written", every_rank=True)
    facts = {"model": str(model_path), "model_hash": encoder.hash, "task": task, "source": _named(source)}
    written = on_main(lambda: staged.join(_parts(listing, rows), facts), "the vectors cannot be written")
    if is_main():
        print(_summary(out, *written, listing.passed_over))
    barrier()


def _write_parts(encoder: Encoder, listing: FolderItems | RecipeItems, staged: StagedParts, rows: int) -> None:
    """This rank's parts that are not there yet."""
    parts = _parts(listing, rows)
    with StageProgress() if is_main() else nullcontext() as report:
        for number in range(rank(), parts, world_size()):
            if not staged.has(number):
                some = range(number * rows, min((number + 1) * rows, len(listing)))
                staged.write(number, *_embedded(encoder, listing, some))
            if report is not None:
                report("embedded", min(staged.count() * rows, len(listing)), len(listing))


def _embedded(encoder: Encoder, listing: FolderItems | RecipeItems, rows: range) -> tuple[list, list[dict]]:
    """The items of some rows with their vectors, and what was left out."""
    items: list[Item] = []
    rejected: list[dict] = []
    for row in rows:
        try:
            items += map(_storable, listing.items(row))
        except BadSample as bad:
            rejected.append(_rejection(listing.name(row), bad))
    found = list(zip(items, encoder.encode(items), strict=True))
    rejected += [_rejection(item.id, bad) for item, bad in found if isinstance(bad, BadSample)]
    return [(item, vector) for item, vector in found if not isinstance(vector, BadSample)], rejected


def _storable(item: Item) -> Item:
    """The item itself. Raises BadSample for one of which the file cannot keep the name: no Unicode text."""
    if not all(is_text(text) for text in (item.id, item.path, item.text) if text is not None):
        raise BadSample("unusable name", f"{item.id!r} is no Unicode text")
    return item


def _rejection(name: str, bad: BadSample) -> dict:
    return {"id": name, "reason": bad.reason, "detail": bad.detail}


def _parts(listing: FolderItems | RecipeItems, rows: int) -> int:
    return -(-len(listing) // rows)


def _digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _named(source: Path | RunConfig) -> str:
    return source.name if isinstance(source, RunConfig) else str(source.resolve())


def _check_output(out: Path) -> None:
    """Before the work, not after it: a file can have this name, and what has it now may be replaced."""
    if out.is_dir() or not out.parent.is_dir():
        raise UserError("the vectors cannot be written there", got=out, allowed="a file in a folder that exists")
    if out.exists():
        read_facts(out)


def _summary(out: Path, kinds: dict[str, int], rejected: list[dict], passed_over: int) -> str:
    """The line about what was written."""
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    line = f"wrote {out}: {sum(kinds.values())} vectors ({counted}), {out.stat().st_size / 1e6:.1f} MB"
    if rejected:
        reasons = [entry["reason"] for entry in rejected]
        named = ", ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
        line += f"; {len(rejected)} left out ({named}), named in {rejected_path(out)}"
    return line + (f"; {passed_over} files of other kinds passed over" if passed_over else "")
