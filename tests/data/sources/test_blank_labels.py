"""Rows whose label is empty have no label: no class of that name is made of them, they are left out and counted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imp_ds.commands.check.report import CheckReport, SourceReport
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.data.class_names import with_class_names
from imp_ds.data.inspect.check import look
from imp_ds.data.order.subset import spread_over
from imp_ds.data.sources import labels, open_reader
from imp_ds.errors import UserError
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification
from imp_ds.tasks import Source, Task

BLANK = ["", "  ", "\u200b"]  # the last has no visible character


def pictures(folder, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    return names


def write(root, kind: str, cells: list) -> Source:
    """A source of pictures with these labels, in a table, metadata, JSON lines or Parquet."""
    columns = {"vision": "file", "label": "species"}
    names = pictures(root, len(cells)) if kind in ("csv", "tsv", "parquet") else pictures(root / "birds/train", len(cells))
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        lines = [f"file{mark}species", *(f"{name}{mark}{cell}" for name, cell in zip(names, cells))]
        (root / f"birds.{kind}").write_text("\n".join(lines) + "\n")
        return Source(path=f"birds.{kind}", **columns)
    if kind == "parquet":
        (root / "birds").mkdir()
        table = pa.table({"file": [f"../{name}" for name in names], "species": cells})
        pq.write_table(table, root / "birds/train.parquet")
        return Source(path="birds", format="parquet", media_root=[str(root)], **columns)
    if kind == "metadata":
        lines = ["file_name,species", *(f"{name},{cell}" for name, cell in zip(names, cells))]
        (root / "birds/train/metadata.csv").write_text("\n".join(lines) + "\n")
    else:
        rows = [json.dumps({"file_name": name, "species": cell}) for name, cell in zip(names, cells)]
        (root / "birds/train/metadata.jsonl").write_text("\n".join(rows) + "\n")
    return Source(path="birds", vision="file_name", label="species")


def opened(root, source):
    return open_reader(root, source, "train", DataSettings(cache_dir=str(root / "cache")))


def run_of(source: Source, root) -> RunConfig:
    task = Task(name="birds", source=source, views=Views(vision=VisionView(height=8, width=8)), batch_size=2,
                objectives=[Classification(modality="vision")])  # fmt: skip
    model = ModelSettings(size="tiny", vision_patch=(4, 8, 8))
    return RunConfig(name="x", data=DataSettings(root=str(root)), model=model, tasks=[task], train=TrainSettings(steps=1))


@pytest.mark.parametrize("kind", ["csv", "tsv", "metadata", "jsonl", "parquet"])
def test_blank_labels_are_no_class(kind, tmp_path):
    """Also where the first and the last row are blank: the others are enough to open the source."""
    cells = [*BLANK, "owl", "jay", "owl", ""]
    if kind in ("jsonl", "parquet"):
        cells[0] = None
    reader = opened(tmp_path, write(tmp_path, kind, cells))
    assert reader.class_names == ["jay", "owl"]
    assert labels(reader).tolist() == [-1, -1, -1, 1, 0, 1, -1]
    for row in (0, 1, 2, 6):
        with pytest.raises(BadSample, match="no label"):
            reader.read(row)


@pytest.mark.parametrize("gap", [None, float("nan")])
def test_a_gap_in_a_column_of_numbers_is_no_label(gap, tmp_path):
    reader = opened(tmp_path, write(tmp_path, "parquet", [1.0, gap, 0.0]))
    assert reader.class_names is None and labels(reader).tolist() == [1, -1, 0]
    with pytest.raises(BadSample, match="no label"):
        reader.read(1)


def test_a_source_without_any_label_is_refused(tmp_path):
    with pytest.raises(UserError, match="no label") as refusal:
        opened(tmp_path, write(tmp_path, "csv", BLANK))
    assert "'species'" in str(refusal.value) and "source.label" in str(refusal.value)


def test_one_class_beside_blank_labels_is_one_class(tmp_path):
    source = write(tmp_path, "csv", ["owl", "", "owl"])
    with pytest.raises(UserError, match="nothing to distinguish") as refusal:
        with_class_names(run_of(source, tmp_path), {"birds": [opened(tmp_path, source)]})
    assert "one class: owl" in str(refusal.value)


def test_the_check_counts_them_and_warns(tmp_path):
    source = write(tmp_path, "csv", ["owl", "", "jay", " "])
    reader, run = opened(tmp_path, source), run_of(source, tmp_path)
    found = look(reader, run.tasks)
    assert found.left_out == {"birds": {"no label": 2}} and found.labels == {0: 1, 1: 1}
    run = with_class_names(run, {"birds": [reader]})
    report = CheckReport(run, "train", [SourceReport(spread_over(reader, 4), ["birds"], found)], [], None, 1, True, [])
    assert report.warnings() == [
        "birds.csv[train]: 2 of 4 rows that were looked at have no label in 'species': they are left out"
    ]
