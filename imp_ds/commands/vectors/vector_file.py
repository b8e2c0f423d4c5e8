"""The Parquet file of `imp_ds embed`: a row for each item with its vector, and in its metadata the model that made them.

It is made in parts, each a row group: a file in a folder beside the Parquet file, `.NAME.partial`, that is replaced as a whole.
A process that ends in between leaves complete parts, and the next one goes on from them.

Shapes: N rows of a part, D width of a vector.
"""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imp_ds.commands.vectors.items import Item
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.written_files import staged_path, write_file, write_json, write_result

_KEY, _REJECTED, _FORMAT = b"imp_ds", b"rejected", 1
_COLUMNS = ("id", "modality", "kind", "path", "text", "task", "split")
_PLAN, _JOINED = "plan.json", "joined"


class Part(NamedTuple):
    """Rows of a row group: the columns beside the vectors, by name, and the vectors, float32 [N, D]."""

    columns: dict[str, list]
    vectors_ND: np.ndarray


class StagedParts:
    """The parts of a Parquet file that is not complete yet.

    Args:
        path: of the file.
        plan: what the parts follow from: those of another plan are removed.
    """

    def __init__(self, path: Path, plan: dict):
        self.path, self.folder, self._plan = path, staged_path(path), plan

    def begin(self) -> None:
        """Make the folder, with the parts in it that an earlier process has written of the same plan. Raises OSError."""
        plan = self.folder / _PLAN
        if plan.is_file() and plan.read_text() == json.dumps(self._plan, indent=2) + "\n":
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_json(plan, self._plan)

    def has(self, number: int) -> bool:
        return self._part(number).is_file()

    def count(self) -> int:
        """How many parts are there."""
        return len(list(self.folder.glob("[0-9]*.parquet")))

    def write(self, number: int, rows: list[tuple[Item, np.ndarray]], rejected: list[dict]) -> None:
        """Raises OSError."""
        columns = {name: pa.array([getattr(item, name) for item, _ in rows], pa.string()) for name in _COLUMNS}
        width = len(rows[0][1]) if rows else 1
        values = np.stack([vector for _, vector in rows]) if rows else np.empty((0, 1), np.float32)
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), width)
        table = pa.table(columns).replace_schema_metadata({_REJECTED: json.dumps(rejected)})
        content = io.BytesIO()
        pq.write_table(table, content)
        write_file(self._part(number), content.getvalue())

    def join(self, parts: int, facts: dict) -> tuple[dict[str, int], list[dict]]:
        """Make the file of its parts, and remove them; rows by kind, and what was left out. Raises UserError where no row is
        left, and OSError."""
        rejected, kinds, joined, writer = [], {}, self.folder / _JOINED, None
        for number in range(parts):
            table = pq.read_table(self._part(number))
            rejected += json.loads(table.schema.metadata[_REJECTED])
            if not len(table):
                continue
            if writer is None:
                meta = {
                    "format": _FORMAT,
                    **facts,
                    "plan": self._plan["digest"],
                    "width": table.schema.field("vector").type.list_size,
                }
                schema = table.schema.with_metadata({_KEY: json.dumps(meta)})
                writer = pq.ParquetWriter(joined, schema)
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            for kind in table["kind"].to_pylist():
                kinds[kind] = kinds.get(kind, 0) + 1
        if writer is not None:
            writer.close()
        self._leave_out(rejected)
        if writer is None:
            shutil.rmtree(self.folder)
            first = "; ".join(f"{entry['id']}: {entry['reason']}: {entry['detail']}" for entry in rejected[:1])
            raise UserError("nothing could be embedded", got=first, fix=f"{rejected_path(self.path)} names all")
        joined.replace(self.path)
        shutil.rmtree(self.folder)
        return kinds, rejected

    def _leave_out(self, rejected: list[dict]) -> None:
        beside = rejected_path(self.path)
        if rejected:
            write_result(beside, "".join(json.dumps(entry) + "\n" for entry in rejected))
        else:
            beside.unlink(missing_ok=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"


def rejected_path(path: Path) -> Path:
    """The file beside that names what was left out."""
    return path.with_suffix(".rejected.jsonl")


def read_facts(path: Path) -> dict:
    """What the metadata say: model, model_hash, task, source, plan, width. Raises UserError for a file that `embed` has not
    written."""
    fix = "imp_ds embed MODEL FOLDER OUT.parquet writes one"
    try:
        found = (pq.read_schema(path).metadata or {}).get(_KEY)
    except (OSError, pa.ArrowException) as error:
        raise UserError("the file of vectors cannot be read", got=f"{path}: {error}", fix=fix) from None
    facts = parse_json(found, path, fix=fix) if found else None
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise UserError("this is no file of vectors", got=f"{path}, which imp_ds embed has not written", fix=fix)
    return facts


def read_parts(path: Path) -> Iterator[Part]:
    """The row groups, one after another. Raises UserError for a damaged one."""
    try:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number)
                vectors = table["vector"].combine_chunks()
                width = vectors.type.list_size
                yield Part({name: table[name].to_pylist() for name in _COLUMNS}, vectors.values.to_numpy().reshape(-1, width))
    except (OSError, pa.ArrowException) as error:
        raise UserError("the file of vectors is damaged", got=f"{path}: {error}", fix="imp_ds embed writes it again") from None
