"""What fuzzing of sources found: each is refused in one message, or leaves out its rows, and nothing else is raised."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.damaged_sources import NAMES, parquet_files, picture
from imp_ds.config import DataSettings
from imp_ds.data.files.file_cache import FileCache
from imp_ds.data.sources import labels, open_reader, parquet
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.tasks import Source

PARQUET = Source(path="t", format="parquet", vision="file_name", text="caption", label="label", label_names=NAMES)


def opened(root, source=PARQUET):
    return open_reader(root, source, "train", DataSettings(cache_dir=str(root / "cache")))


def written(root, data: bytes):
    (root / "t").mkdir(exist_ok=True)
    (root / "t/train-0.parquet").write_bytes(data)
    return root


def rows(number: int) -> pa.Table:
    columns = {"file_name": [picture(n % 8) for n in range(number)], "caption": [f"number {n}" for n in range(number)]}
    return pa.table(columns | {"label": [NAMES[n % 3] for n in range(number)]})


def test_a_damaged_footer_is_one_message(tmp_path):
    """Eight bytes of it are replaced, here and there: Arrow raises OSError, or whatever it runs into in names and schemas."""
    data, refused = parquet_files()["snappy.parquet"], []
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for at in range(begin, len(data), 24):
        try:
            opened(written(tmp_path, data[:at] + b"\xff" * 8 + data[at + 8 :]))
        except UserError as error:
            refused.append(error.what)
    assert refused.count("a file is not Parquet") > (len(data) - begin) // 48


def test_a_footer_that_lies_about_its_rows_is_refused(tmp_path, monkeypatch):
    """The file has seven rows; where a group is said to have other ones, it is damaged."""
    pq.write_table(rows(7), written(tmp_path, b"") / "t/train-0.parquet")
    footer = parquet._footer
    monkeypatch.setattr(parquet, "_footer", lambda *given: footer(*given)._replace(rows_G=[9]))
    with pytest.raises(UserError, match="damaged\n  got: .*7 rows, not 9"):
        opened(tmp_path)


def test_a_damaged_row_group_is_unpacked_once(tmp_path, monkeypatch):
    """Groups of four rows: the first, of which the pages are zeros, is tried once for all of its rows, and the other is read."""
    path = written(tmp_path, b"") / "t/train-0.parquet"
    pq.write_table(rows(8), path, row_group_size=4, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    # a group's columns lie one after another: the second's pages begin where those of the first end
    end = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[4:end] = bytes(end - 4)
    path.write_bytes(data)
    tried, table = [], parquet._table
    monkeypatch.setattr(parquet, "_table", lambda packed, group, columns: tried.append(group) or table(packed, group, columns))
    reader = opened(tmp_path)
    for row in range(4):
        with pytest.raises(BadSample, match="damaged: .*train-0.parquet, row group 0: "):
            reader.read(row)
    assert [reader.read(row)["label"] for row in range(4, 8)] == [1, 2, 0, 1] and sorted(tried) == [0, 1]


def test_texts_of_parquet_that_are_not_utf8_leave_their_group_out(tmp_path):
    """A flipped bit in a caption: its group cannot be distinguished from a damaged one."""
    path = written(tmp_path, b"") / "t/train-0.parquet"
    pq.write_table(rows(8), path, row_group_size=4, compression="none", use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"number 1", b"n\xffmber 1", 1))
    reader = opened(tmp_path)
    with pytest.raises(BadSample, match="damaged"):
        reader.read(1)
    assert reader.read(4)["text"] == ["number 4"]


@pytest.mark.parametrize("changes", [{"label_names": None}, {"holdout": {"test": 0.5}}])
def test_what_is_made_of_unpacked_rows_waits_for_no_lock_of_its_own(tmp_path, monkeypatch, changes):
    """Class names and held-out shares are cached, and are made of cached row groups, which share a lock when their names happen
    to begin alike, here always."""
    path = FileCache._path
    monkeypatch.setattr(FileCache, "_path", lambda self, key: path(self, key).parent.parent / "00" / path(self, key).name)
    pq.write_table(rows(8), written(tmp_path, b"") / "t/train-0.parquet", row_group_size=2)
    reader = opened(tmp_path, PARQUET.model_copy(update=changes))
    assert reader.class_names == NAMES and 0 < len(reader) <= 8


@pytest.mark.parametrize("digits", [4300, 5000, 100_000])
def test_a_number_that_is_no_number_is_no_class(tmp_path, digits):
    folder = tmp_path / "t/train"
    folder.mkdir(parents=True)
    lines = ["caption,label", "one,1", f"two,{'9' * digits}", "three,0"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    assert labels(opened(tmp_path, Source(path="t", text="caption", label="label"))).tolist() == [1, -1, 0]
