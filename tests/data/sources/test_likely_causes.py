"""A table without the wanted columns, and a folder without anything: the message names the likely cause and how to mend it."""

import pytest

from imp_ds.config import DataSettings
from imp_ds.data.sources import has_split, open_reader
from imp_ds.errors import UserError
from imp_ds.tasks import Source

TABLE = Source(path="birds.csv", audio="file", label="species")


def refused(root, source: Source) -> str:
    with pytest.raises(UserError) as refusal:
        open_reader(root, source, "train", DataSettings(cache_dir=str(root / "cache")))
    return str(refusal.value)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("file;species\na.wav;owl\n", ["got:     'file'", "separated by ';'", "source.delimiter=';'"]),
        ("file\tspecies\na.wav\towl\n", ["source.delimiter='\\t'"]),
        ("n,a;file;species\n", ["source.delimiter=';'"]),
        ("a.wav,owl\nb.wav,jay\n", ["'file'", "a.wav, owl", "no header", "'file,species'"]),
        ("", ["birds.csv is empty", "'file,species'"]),
        ("path,species\na.wav,owl\n", ["'file'", "path, species", "name a column that is there"]),
    ],
)
def test_a_table_without_the_wanted_columns(text, parts, tmp_path):
    (tmp_path / "birds.csv").write_text(text)
    reported = refused(tmp_path, TABLE)
    assert [part for part in parts if part not in reported] == [], reported


@pytest.mark.parametrize(
    "source",
    [
        Source(path="birds", vision="file_name", label="label"), Source(path="birds", vision="file_name"),
        Source(path="birds", format="parquet", vision="image"), Source(path="birds", format="webdataset", vision="png"),
    ],
)  # fmt: skip
def test_an_empty_folder_is_called_empty(source, tmp_path):
    (tmp_path / "birds").mkdir()
    assert f"the folder {tmp_path}/birds is empty" in refused(tmp_path, source)
    assert not has_split(tmp_path, source, "train")
