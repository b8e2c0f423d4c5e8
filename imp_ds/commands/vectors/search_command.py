"""`imp_ds search MODEL OUT.parquet QUERY`: the items of a file of vectors that are nearest to a text or a file.

Two modalities share one of the blocks of their vectors, so the cosine of these is that of the pair divided by a number that is
the same for all items of a modality (`ImpModel.cosine_scale`). What is shown is the pair's, between -1 and 1; hits are ordered by
it.

Shapes: N rows of a row group, D width of a vector.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from imp_ds.commands.vectors.encoder import Encoder
from imp_ds.commands.vectors.items import MODALITY, Item, item_of, kind_of
from imp_ds.commands.vectors.vector_file import Part, read_facts, read_parts
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.messages.spellings import SUFFIXES
from imp_ds.modalities.modality import TEXT
from imp_ds.terminal.printable import printable
from imp_ds.written_files import write_result

_TEXT_SHOWN = 60


class Hit(NamedTuple):
    """An item and how near it is. row: of the file, from 0; cosine: of the pair's space; vector_cosine: of the vectors."""

    row: int
    cosine: float
    vector_cosine: float
    columns: dict[str, str | None]


def search(
    model_path: Path, vectors: Path, query: str, *, top: int = 10, only: list[str] = (), output: Path | None = None
) -> list[Hit]:  # fmt: skip
    """The `top` nearest items, the nearest first; also as a table, and as JSON lines in `output`.

    Args:
        query: the name of a file, or else a text.
        only: kinds or modalities of the items: image, video, vision, audio, text; (): all that the model compares with the query.

    Raises UserError for vectors of another model, a query that cannot be read, and where no item can be compared with it.
    """
    facts = check_vectors(model_path, vectors)
    encoder = Encoder(model_path, facts["task"])
    item = query_item(query)
    hits = nearest(encoder, vectors, item, query_vector(encoder, item), top, only)
    _show(hits, item)
    if output is not None:
        lines = [{"cosine": hit.cosine, "vector_cosine": hit.vector_cosine, **hit.columns} for hit in hits]
        write_result(output, "".join(json.dumps(line) + "\n" for line in lines))
        print(f"wrote {output}: {len(hits)} items")
    return hits


def check_vectors(model_path: Path, vectors: Path) -> dict:
    """The facts of a file of vectors. Raises UserError where another model has made them."""
    from imp_ds.evaluation.harness.model_meta import folder_hash

    facts = read_facts(vectors)
    if not model_path.is_dir() or (own := folder_hash(model_path)) == facts["model_hash"]:
        return facts
    raise UserError(
        "the vectors are of another model", got=f"{vectors}: model {facts['model_hash'][:12]}, which was {facts['model']}",
        allowed=f"those of {model_path}, {own[:12]}", fix=f"imp_ds embed {model_path} FOLDER OUT.parquet, or that model",
    )  # fmt: skip


def query_item(query: str) -> Item:
    """The file that a query names, or the text that it is. Raises UserError for a file that cannot be read, and for the name of
    a media file that is not there."""
    path = Path(query)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a text that no file can be called
        is_file = False
    if not is_file:
        if path.suffix[1:].lower() in set().union(*SUFFIXES.values()) and not any(map(str.isspace, query)):
            raise UserError("there is no such file", got=query, allowed="a file, or a text")
        return Item("query", TEXT, [query], text=query)
    return file_item(Media(query, path=path))


def file_item(medium: Media) -> Item:
    """The item of a file that is asked about. Raises UserError for one that cannot be read."""
    try:
        kind = kind_of(medium)
        if kind is None:
            raise UserError("the file is of no kind that is known", got=medium.name, allowed=", ".join(MODALITY))
        return item_of(medium, medium.name, kind)
    except BadSample as bad:
        raise UserError("the query cannot be read", got=bad) from None


def query_vector(encoder: Encoder, item: Item) -> np.ndarray:
    """float32 [D]. Raises UserError for what cannot be read or compared."""
    (found,) = encoder.encode([item])
    if isinstance(found, BadSample):
        raise UserError("the query cannot be read", got=found)
    return found


def nearest(
    encoder: Encoder, vectors: Path, item: Item, vector_D: np.ndarray, top: int, only: list[str] = ()
) -> list[Hit]:  # fmt: skip
    """The `top` items that are nearest to one, the nearest first; of equal ones, the first of the file. Raises UserError where
    none can be compared, or the vectors have another width."""
    found, first = [], 0
    for part in read_parts(vectors):
        if part.vectors_ND.shape[1] != len(vector_D):
            raise UserError(
                "the vectors have another width", got=part.vectors_ND.shape[1], allowed=f"{len(vector_D)}, the model's"
            )
        found = sorted(found + _hits(encoder, part, item, vector_D, first, top, only), key=lambda hit: (-hit.cosine, hit.row))[
            :top
        ]
        first += len(part.vectors_ND)
    if not found:
        what = f" of {', '.join(only)}" if only else ""
        raise UserError(f"no item{what} can be compared with the query", got=f"{item.kind}, of {first} items in {vectors}")
    return found


def _hits(encoder: Encoder, part: Part, item: Item, vector_D: np.ndarray, first: int, top: int, only: list[str]) -> list[Hit]:
    """The nearest of a row group, whose first row has number `first`."""
    modalities, kinds = np.array(part.columns["modality"]), np.array(part.columns["kind"])
    scales = {name: encoder.scale(item.modality, name) for name in set(part.columns["modality"])}
    scale_N = np.array([np.nan if scales[name] is None else scales[name] for name in part.columns["modality"]])
    cosine_N = part.vectors_ND @ vector_D
    usable_N = ~np.isnan(scale_N)
    if only:
        usable_N &= np.isin(modalities, only) | np.isin(kinds, only)
    rows = np.flatnonzero(usable_N)
    rows = rows[np.argsort(-(cosine_N * scale_N)[rows], kind="stable")[:top]]
    return [
        Hit(first + row, float(cosine_N[row] * scale_N[row]), float(cosine_N[row]), {k: v[row] for k, v in part.columns.items()})
        for row in rows.tolist()
    ]


def _show(hits: list[Hit], item: Item) -> None:
    table = Table(title=f"nearest to {printable(_short(item.text or item.id))} ({item.kind})")
    table.add_column("cosine", justify="right")
    table.add_column("kind")
    table.add_column("item", overflow="fold")
    for hit in hits:
        text = hit.columns["text"]
        table.add_row(
            f"{hit.cosine:.3f}", hit.columns["kind"], printable(hit.columns["id"] + (f": {_short(text)}" if text else ""))
        )
    console = Console()
    console.print(table, markup=False)
    if any(hit.cosine != hit.vector_cosine for hit in hits):
        print(
            "the cosine is that of the pair's own space; that of the vectors is smaller by a factor for each pair of modalities"
        )


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 3] + "..."
