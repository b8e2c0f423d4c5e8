"""The format of docs/extending.md, copied out of the page: read, held out, checked, and refused by name."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.pages import import_beside, shown_files
from imp_ds import Classification, DataSettings, Source, Task, Views, VisionView, get_recipe
from imp_ds.data.inspect.check import look
from imp_ds.data.sources import has_split, labels, open_reader
from imp_ds.errors import UserError
from imp_ds.registry import FORMATS


@pytest.fixture
def formats(tmp_path, monkeypatch):
    """The page's module of formats as it is imported, once it has been: a function. What it registers is forgotten again."""
    yield lambda: import_beside(shown_files("extending.md"), "my_formats", tmp_path, monkeypatch)
    FORMATS._found.pop("json_samples", None)


def street(folder: Path) -> None:
    """40 pictures, a JSON file each; one leads out of the folder, one is cut off."""
    folder.mkdir(parents=True)
    for number in range(40):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number:02}.png")
        sample = {"annotation": {"picture": f"{number:02}.png", "kind": number % 2}}
        (folder / f"{number:02}.json").write_text(json.dumps(sample))
    (folder / "20.json").write_text('{"annotation": {"picture": "../../../secret.png", "kind": 0}}')
    (folder / "21.json").write_text('{"annotation"')


def test_a_format_is_read_held_out_and_checked(tmp_path, formats):
    formats()
    street(tmp_path / "street" / "train")
    source = Source(path="street", format="json_samples", vision="picture", label="kind", options={"under": "annotation"},
                    holdout={"validation": 0.25})  # fmt: skip
    assert Source.model_validate_json(source.model_dump_json()) == source
    assert has_split(tmp_path, source, "validation") and not has_split(tmp_path, source, "test")
    settings = DataSettings(root=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    train, held = (open_reader(tmp_path, source, split, settings) for split in ("train", "validation"))
    rows = [(reader, row, int(reader.key(row)[:2])) for reader in (train, held) for row in range(len(reader))]
    assert sorted(number for _, _, number in rows) == list(range(40)) and 0 < len(held) < 20
    for reader, row, number in rows:
        if number not in (20, 21):
            sample = pickle.loads(pickle.dumps(reader)).read(row)  # as a process of workers has it
            with sample["vision"].open() as file:
                assert np.asarray(Image.open(file))[0, 0, 0] == number and sample["label"] == number % 2
    task = Task(name="kinds", batch_size=2, source=source, views=Views(vision=VisionView(height=8, width=8)),
                objectives=[Classification(modality="vision", num_classes=2)])  # fmt: skip
    full = open_reader(tmp_path, source.model_copy(update={"holdout": {}}), "train", settings)
    found = look(full, [task])
    assert found.rows == 40 and found.left_out["kinds"] == {"unsafe name": 1, "bad JSON": 1}
    assert sorted(labels(full).tolist()) == [-1] + [0] * 20 + [1] * 19  # of the one that leads out the label is read


def test_names_and_options_of_formats_are_refused_with_a_suggestion(formats):
    with pytest.raises(ValueError, match="(?s)unknown format.*json_samples.*import the module"):
        Source(path="street", format="json_samples")
    formats()
    with pytest.raises(ValueError, match="did you mean json_samples"):
        Source(path="street", format="json_sample")
    with pytest.raises(ValueError, match="(?s)options of the format json_samples: undr.*mean under"):
        Source(path="street", format="json_samples", options={"undr": "x"})
    with pytest.raises(ValueError, match="the format folder takes no options"):
        Source(path="street", options={"under": "x"})
    with pytest.raises(UserError, match="did you mean parquet"):
        get_recipe("digits_debug").override(["tasks.image_text.source.format=parket"])


def test_a_format_that_leaves_something_open_is_refused_at_import():
    page = shown_files("extending.md")["my_formats.py"]
    with pytest.raises(UserError, match="(?s)JsonFormat does not define all parts.*no find"):
        exec(page.replace("    def find(self", "    def search(self"), {"__name__": "mine"})
    with pytest.raises(UserError, match="(?s)two of one name: the format parquet.*imp_ds.data.sources.parquet"):
        exec(page.replace("json_samples", "parquet"), {"__name__": "mine"})
