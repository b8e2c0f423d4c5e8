"""Sensors: windows of several channels read, cut, standardised and embedded, by hand; and through a whole run."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.pages import run_beside
from imp_ds import ImpConfig
from imp_ds.config import DataSettings, RunConfig
from imp_ds.data.decoding import decode, decode_windows
from imp_ds.data.sources import open_reader
from imp_ds.errors import UserError
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities import get_modality
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.modality import TextNeeds
from imp_ds.modalities.sensors import SensorsProcessing, SensorsView
from imp_ds.modalities.views import Augmentation, Views
from imp_ds.objectives import Classification, Contrastive
from imp_ds.overrides import parse_record
from imp_ds.tasks import Source, Task

SENSORS = get_modality("sensors")
VIEW = SensorsView(seconds=3, rate_hz=1, channels=2)  # three steps of two channels
PART = SensorsProcessing(view=VIEW, patch=2, mean=[1.0, 10.0], std=[2.0, 5.0])
STEPS_52 = np.array([[1, 10], [3, 15], [5, 20], [7, 25], [9, 30]], np.float32)


def preprocessed(windows, rngs=None, view=VIEW):
    return SENSORS.preprocess(windows, view, PART, rngs, augment=Augmentation(), text=TextNeeds(), empty=np.empty).inputs


def read(value):
    return SENSORS.read(value, "row 1", lambda: pytest.fail("this is no file"))


def test_patches_are_standardised_steps_in_time():
    # less the mean, by the deviation: both channels rise by 1 a step. The middle three of five are 1, 2, 3; the fourth is padding
    # with the means, which are 0. Of three steps all are taken: 0, 1, 2
    inputs = preprocessed([STEPS_52, STEPS_52[:3]])
    assert inputs["sensor_values"].tolist() == [[[1, 1, 2, 2], [3, 3, 0, 0]], [[0, 0, 1, 1], [2, 2, 0, 0]]]
    assert inputs["sensor_positions"].tolist() == [[[0.0], [0.5]]] * 2 and inputs["sensor_values"].dtype == np.float32


def test_dropped_tokens_leave_true_positions():
    view = VIEW.model_copy(update={"seconds": 8.0, "drop_rate": 0.5})  # four patches, of which two are kept
    window = np.arange(16, dtype=np.float32).reshape(8, 2)
    found = set()
    for seed in range(100):
        inputs = preprocessed([window], [np.random.default_rng(seed)], view)
        positions = inputs["sensor_positions"][0, :, 0]
        for values, position in zip(inputs["sensor_values"][0], positions):
            assert values[0] == (window[round(position * 4) * 2, 0] - 1) / 2  # the patch is the one of its position
        found.add(tuple(positions))
    assert len(found) == 6 and all(len(kept) == 2 for kept in found)  # every pair of four


@pytest.mark.parametrize("value", [STEPS_52.tolist(), STEPS_52.ravel().tolist(), STEPS_52.astype(np.float64)])
def test_lists_of_steps_and_of_all_numbers_are_one_window(value):
    assert np.array_equal(decode({"sensors": read(value)}, Views(sensors=VIEW))["sensors"], STEPS_52)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("x,y\n1,10\n3,15\n", []),
        ("1;10\n3;15\n", []),
        ("\ufefftime\ty\tx\n0\t10\t1\n1\t15\t3\n", ["x", "y"]),  # with a byte order mark, in another order, and one column more
    ],
)
def test_tables_are_windows(text, columns):
    view = VIEW.model_copy(update={"columns": columns})
    found = decode({"sensors": Media("walk.csv", data=text.encode())}, Views(sensors=view))
    assert found["sensors"].tolist() == [[1, 10], [3, 15]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x,y\n1,2\n3\n", "wrong column"), ("x,y\n1,2\nthree,4\n", "unreadable sensors"),
        ("x,y\n1,2\nnan,4\n", "unreadable sensors"),
        ("x\n1\n2\n", "wrong column"), ("x,y\n", "wrong column"), ("\x00\xff", "unreadable sensors"),
    ],
)  # fmt: skip
def test_broken_tables_are_left_out(text, reason):
    with pytest.raises(BadSample) as found:
        decode({"sensors": Media("walk.csv", data=text.encode("latin-1"))}, Views(sensors=VIEW))
    assert found.value.reason == reason


@pytest.mark.parametrize("value", [[[1, 2], [3]], ["a", "b"], [[[1, 2]]], [True, False]])
def test_what_is_no_list_of_numbers_is_left_out(value):
    with pytest.raises(BadSample, match="wrong column"):
        read(value)


def test_training_draws_a_window_and_evaluation_takes_all():
    rngs = [np.random.default_rng(seed) for seed in range(30)]
    drawn = [decode({"sensors": STEPS_52}, Views(sensors=VIEW), rng)["sensors"] for rng in rngs]
    assert {float(window[0, 0]) for window in drawn} == {1, 3, 5} and all(len(window) == 3 for window in drawn)
    windows = decode_windows({"sensors": STEPS_52}, Views(sensors=VIEW))  # the second goes up to the end
    assert [window["sensors"][:, 0].tolist() for window in windows] == [[1, 3, 5], [5, 7, 9]]


def test_the_processor_of_a_model_takes_arrays_files_and_lists(tmp_path):
    (tmp_path / "walk.csv").write_text("x,y\n1,10\n3,15\n5,20\n")
    expected = preprocessed([STEPS_52[:3]])["sensor_values"]
    steps = STEPS_52[:3]
    lists = [steps.tolist(), [steps], [*steps], [list(row) for row in steps], steps.ravel().tolist(), [steps.ravel()]]
    for given in (steps, *lists, torch.tensor(steps), steps[None], str(tmp_path / "walk.csv"), [tmp_path / "walk.csv"]):
        assert np.array_equal(PART.inputs(given)["sensor_values"], expected)
    with pytest.raises(UserError, match="(?s)sensors cannot be read.*3x1 numbers, which are no steps of 2 channels"):
        PART.inputs(np.zeros((3, 1)))


def test_the_embedding_is_a_projection_and_a_position():
    sizes = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, num_experts=0)
    config = ImpConfig(
        modalities=["vision", "audio", "text", "sensors"], sensors_patch=2, sensors_max=8, sensors_channels=2, **sizes
    )
    module = SENSORS.embedding(config)
    values, positions = torch.randn(1, 2, 4), torch.tensor([[[0.0], [0.5]]])
    tokens, valid = module(values, positions)
    table = module.positions.tables[0].weight  # four buckets: 0.5 is the third
    by_hand = values @ module.patch.weight.T + module.patch.bias + module.positions.norm(table[[0, 2]])
    assert valid is None and torch.allclose(tokens, by_hand, atol=1e-6)
    # 10 tokens of 4 values to width 8, forward and the weight's gradient: 2 * (2 * 10 * 4 * 8) FLOPs
    assert sum(kernel.flops for kernel in SENSORS.kernels(config, 10, 4, 4)) == 1280


def task(view=VIEW, **changes):
    source = Source(path="walks", format="parquet", sensors="steps", text="caption", label="label")
    objectives = [Contrastive(pairs=[("sensors", "text")]), Classification(modality="sensors", num_classes=2)]
    return Task(name="walk", source=source, views=Views(sensors=view, text=dict(length=4)), objectives=objectives, batch_size=4)


def test_a_model_has_what_its_tasks_read():
    settings = ModelSettings(size="tiny", sensors_patch=2)
    config = settings.to_config(64, [task()])
    assert config.modalities == ["vision", "audio", "text", "sensors"] and config.sensors_channels == 2
    assert ["sensors", "text"] in config.pairs and config.sensors_max == 1000
    assert ImpConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert SENSORS.tokens(VIEW, config, None, "views.sensors") == 2  # three steps, in patches of two
    with pytest.raises(UserError, match="(?s)views of sensors differ.*2 channels at 1 Hz and 2 channels at 50 Hz.*same rate_hz"):
        settings.to_config(64, [task(), task(VIEW.model_copy(update={"rate_hz": 50.0}))])
    with pytest.raises(UserError, match="views.sensors.channels are not the model's"):
        SENSORS.tokens(VIEW.model_copy(update={"channels": 3}), config, None, "views.sensors")
    with pytest.raises(UserError, match="(?s)sensors_patch, of a model of vision, audio, text.*add sensors"):
        ImpConfig(sensors_patch=4)
    with pytest.raises(UserError, match="sensors_max is not a multiple"):
        ModelSettings(size="tiny", sensors_patch=3).to_config(64, [task()])


def write_walks(folder, rows=16):
    """Parquet with lists of steps, and the same rows as CSV files that a table names."""
    rng = np.random.default_rng(0)
    windows = [
        np.outer(np.arange(6), [1.0, -1.0] if row % 2 else [-1.0, 1.0]) + rng.normal(0, 0.1, (6, 2)) for row in range(rows)
    ]
    for split in ("train", "validation"):
        (folder / "walks").mkdir(parents=True, exist_ok=True)
        (folder / "files" / split).mkdir(parents=True)
        captions = ["down" if row % 2 else "up" for row in range(rows)]
        columns = {"steps": [w.ravel().tolist() for w in windows], "caption": captions, "label": [row % 2 for row in range(rows)]}
        pq.write_table(pa.table(columns), folder / "walks" / f"{split}.parquet")
        lines = ["file_name,caption,label"]
        for row, window in enumerate(windows):
            np.savetxt(folder / "files" / split / f"{row}.csv", window, delimiter=",", header="x,y", comments="")
            lines.append(f"{row}.csv,{captions[row]},{row % 2}")
        (folder / "files" / split / "metadata.csv").write_text("\n".join(lines) + "\n")


def test_parquet_and_files_hold_the_same(tmp_path):
    write_walks(tmp_path)
    settings = DataSettings(root=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    sources = [
        Source(path="walks", format="parquet", sensors="steps", label="label"),
        Source(path="files", sensors="file_name", label="label"),
    ]
    readers = [open_reader(tmp_path, source, "train", settings) for source in sources]
    assert [len(reader) for reader in readers] == [16, 16]
    for row in (0, 15):
        lists, files = (decode(reader.read(row), Views(sensors=VIEW)) for reader in readers)
        assert lists["label"] == files["label"] == row % 2
        np.testing.assert_allclose(lists["sensors"], files["sensors"], rtol=1e-6)


_RUN = """
import json, torch
import numpy as np
from pathlib import Path
from imp_ds import (Classification, Contrastive, DataSettings, Evaluation, ImpForPreTraining, ImpProcessor, ModelSettings,
                    RunConfig, SensorsView, Source, Task, TextView, TrainSettings, OptimizerSettings, Views, train)
from imp_ds.commands.export import export
from imp_ds.commands.show_command import show

view = SensorsView(seconds=6, rate_hz=1, channels=2)
views = Views(sensors=view.model_copy(update={"drop_rate": 0.3}), text=TextView(length=4))
lists = Source(path="walks", format="parquet", sensors="steps", text="caption", label="label", label_names=["up", "down"])
files = Source(path="files", sensors="file_name", text="caption", label="label", label_names=["up", "down"])
run = RunConfig(
    name="walks",
    model=ModelSettings(size="tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=1, common_dim=16, text_max=8,
                        sensors_patch=2, sensors_max=8, num_experts=2, moe_layers="all", gate="attribute",
                        vision_max=(4, 16, 16), audio_max=(16, 16)),
    data=DataSettings(root=".", workers=0, vocab_size=40, cache_dir="cache"),
    tasks=[Task(name="match", source=lists, additional_sources=[files], views=views, batch_size=8,
                objectives=[Contrastive(pairs=[("sensors", "text")], positives="equal")]),
           Task(name="kind", source=files, views=Views(sensors=view), batch_size=8,
                objectives=[Classification(modality="sensors", num_classes=2)])],
    evaluations=[Evaluation(name="walks", task="match", modality="sensors", source=lists,
                            views=Views(sensors=view, text=TextView(length=4)),
                            templates=["{}"])],
    train=TrainSettings(steps=40, log_every=20, eval_every=0, save_every=0),
    optimizer=OptimizerSettings(peak_rate=1e-2))
train(run, "run")
print(show(run, "train", 2, None, Path("show.html")))
export(Path("run"), Path("model"))
model, processor = ImpForPreTraining.from_pretrained("model").eval(), ImpProcessor.from_pretrained("model")
steps = np.arange(6.0)
found = model.predict("kind", **processor(sensors=[np.stack([steps, -steps], 1), np.stack([-steps, steps], 1)]))
print(json.dumps(found))
part = processor.modalities["sensors"]
print(json.dumps({"patch": part.patch, "mean": part.mean, "std": part.std}))
"""


def test_a_run_trains_shows_exports_and_predicts(tmp_path):
    write_walks(tmp_path)
    out = run_beside({}, _RUN, tmp_path, limit=280)
    lines = [line for line in out.splitlines() if line.startswith(("[{", "{"))]
    rising, falling = eval(lines[0])
    assert rising["down"] > 0.9 and falling["up"] > 0.9, out
    page = (tmp_path / "show.html").read_text()
    assert page.count("<img") == 4 and "sensors: seconds 6" in page
    card = (tmp_path / "model" / "README.md").read_text()
    assert "NCE of sensors-text" in card and "sensors=[window]" in card
    # channel x of row r is n * (1 or -1) for n = 0 .. 5, half of each: mean 0, deviation sqrt(mean of n^2) = sqrt(55 / 6) = 3.03
    part = eval(lines[1])
    assert part["patch"] == 2 and np.allclose(part["mean"], 0, atol=0.1) and np.allclose(part["std"], 3.03, atol=0.1)
    assert "zero_shot/walks/top1" in (tmp_path / "run" / "results.json").read_text()


def test_lists_of_unequal_length_are_named_as_such():
    with pytest.raises(BadSample, match="the row has lists of unequal length: "):
        SENSORS.read([[1.0, 2.0], [1.0]], "the row", None)


def test_a_modality_that_nothing_registered_is_refused_with_the_way_to_it():
    with pytest.raises(UserError, match="(?s)views.senors.*did you mean sensors.*import the module that registers it"):
        tasks = [{"name": "a", "views": {"senors": {}}}]
        parse_record(RunConfig, {"name": "x", "train": {"steps": 1}, "tasks": tasks}, "a recipe")
