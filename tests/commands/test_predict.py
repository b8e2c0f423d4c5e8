"""`imp_ds predict` on files: the classes by name, broken files named, and what it writes."""

import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from imp_ds.commands.predict import predict
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.data.sources import open_reader
from imp_ds.errors import UserError
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.processor import build_processor
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification
from imp_ds.tasks import Source, Task

NAMES = ["red fox", "badger"]


def task_of(name: str, modality: str, view) -> Task:
    objective = Classification(modality=modality, num_classes=2, names=NAMES)
    source = Source(path="x", label="l", **{modality: "v"})
    return Task(name=name, source=source, views=Views(**{modality: view}), objectives=[objective], batch_size=4)


ANIMAL = task_of("animal", "vision", VisionView(height=32, width=32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported model of one classification task."""
    return export(tmp_path_factory.mktemp("model"), ANIMAL)


def export(folder, *tasks: Task, **readers):
    model = ModelSettings(
        size="tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, text_max=8,
        vision_patch=(1, 16, 16), vision_max=(1, 64, 64), audio_patch=(16, 16), audio_max=(16, 128),
    )  # fmt: skip
    run = RunConfig(name="x", model=model, data=DataSettings(vocab_size=50), tasks=list(tasks), train=TrainSettings(steps=1))
    processor = build_processor(run, {task.name: [] for task in tasks} | readers)
    torch.manual_seed(0)
    ImpForPreTraining(model.to_config(len(processor.tokenizer), list(tasks), processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    run.save(folder)
    return folder


def test_files_and_folders_are_predicted_by_name(folder, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("a.png", "more/b.png"):
        Image.fromarray(draw.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(pictures / name)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / ".hidden").write_bytes(b"")
    found = predict(folder, [pictures], output=tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(pictures / name) for name in ("a.png", "broken.jpg", "more/b.png")]
    assert "unreadable image" in lines[1]["error"] and lines[0]["predictions"] == found[lines[0]["file"]]
    assert all(set(of) == set(NAMES) and sum(of.values()) == pytest.approx(1) for of in found.values())
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"wrote {tmp_path / 'out.jsonl'}: 2 files predicted, 1 left out"
    # by the model's own preprocessing
    model, processor = ImpForPreTraining.from_pretrained(folder).eval(), build_processor(RunConfig.load(folder), {"animal": []})
    images_kwargs = {"size": {"height": 32, "width": 32}}
    (expected,) = model.predict(**processor(images=[Image.open(pictures / "a.png")], images_kwargs=images_kwargs))
    assert found[str(pictures / "a.png")] == pytest.approx(expected, abs=1e-5)


def test_what_cannot_be_predicted_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file to predict"):
        predict(folder, [tmp_path / "empty"])
    with pytest.raises(UserError, match="missing file"):
        predict(folder, [tmp_path / "nothing.png"])
    soundfile.write(tmp_path / "owl.wav", np.zeros(800, np.float32), 8000)
    with pytest.raises(UserError, match=r"the task animal reads vision \(images and videos\)$"):
        predict(folder, [tmp_path / "owl.wav"])
    with pytest.raises(UserError, match="no task that distinguishes classes"):
        predict(folder, [tmp_path], task="plants")


def test_a_task_that_can_read_the_file_is_named(tmp_path):
    soundfile.write(tmp_path / "owl.wav", np.zeros(800, np.float32), 8000)
    (tmp_path / "calls.csv").write_text("file,label\nowl.wav,0\n")
    waveforms = open_reader(tmp_path, Source(path="calls.csv", audio="file", label="label"), "train", DataSettings())
    model = export(tmp_path / "model", ANIMAL, task_of("call", "audio", AudioView(seconds=0.1)), call=[waveforms])
    with pytest.raises(UserError) as refusal:
        predict(model, [tmp_path / "owl.wav"], task="animal")
    assert str(refusal.value).splitlines()[2:] == [
        "  allowed: the task animal reads vision (images and videos)",
        "  fix:     --task call, which can read it",
    ]
    assert list(predict(model, [tmp_path / "owl.wav"], task="call")) == [str(tmp_path / "owl.wav")]
