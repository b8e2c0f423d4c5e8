"""Nothing foreign is executed: a pickle (or Python code) in place of every file that is read never runs.

The payload makes a file when it is unpickled or imported. `RAW` is the bare pickle, `ZIPPED` what torch.save makes of it.
"""

import hashlib
import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

from helpers.plain_engine import fill, make_engine
from imp_ds import ImpConfig, ImpForPreTraining, ImpModel, ImpProcessor
from imp_ds.commands.exported_model import load_model
from imp_ds.config import DataSettings, RunConfig
from imp_ds.data.sources import open_reader
from imp_ds.errors import UserError
from imp_ds.evaluation.zero_shot import load_classes
from imp_ds.modalities.audio.recordings import open_recording
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.text.tokenizers import load_tokenizer, train_tokenizer
from imp_ds.modalities.vision.image import read_image
from imp_ds.modalities.vision.video import read_video
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor
from imp_ds.recipes import get_recipe
from imp_ds.tasks import Source
from imp_ds.train import checkpoint
from imp_ds.train.engine import ds_config


class Payload:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "it ran")


def raw(mark: Path) -> bytes:
    return pickle.dumps(Payload(mark))


def zipped(mark: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": Payload(mark)}, file)
    return file.getvalue()


FORMS = pytest.mark.parametrize("form", [raw, zipped])


@pytest.fixture
def mark(tmp_path):
    """The file that the payload would make; it must not be there at the end."""
    mark = tmp_path / "mark"
    yield mark
    assert not mark.exists()


def refused(function, *arguments) -> bool:
    """Whether the call raises, whatever it is: each reader of a foreign file fails in its own way."""
    try:
        function(*arguments)
    except Exception:
        return True
    return False


def test_the_payload_would_run(tmp_path):
    for form, load in ((raw, pickle.load), (zipped, lambda file: torch.load(file, weights_only=False))):
        mark = tmp_path / form.__name__
        load(io.BytesIO(form(mark)))
        assert mark.read_text() == "it ran"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    engine = make_engine(100)
    fill(engine, 1)
    return checkpoint.save(engine, tmp_path_factory.mktemp("saved"), 1, {"step": 1, "adam_steps": 1}, keep=1)


FILES = [
    "model-00000.safetensors", "optimizer-00000.safetensors", "random-00000.safetensors", "index.json", "state.json",
    "references.json", "manifest.json",
]  # fmt: skip


def read_all(folder: Path) -> None:
    reader = checkpoint.Reader(folder)
    reader.load_weights(make_engine(100).model)
    for key in reader.index:
        reader.read(key, 0, 1)
    reader.random_state_of(torch.device("cpu"))


def test_the_files_of_a_checkpoint_are_these(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    read_all(saved)


@FORMS
@pytest.mark.parametrize("name", FILES)
def test_checkpoints(saved, tmp_path, mark, form, name):
    folder = shutil.copytree(saved, tmp_path / "checkpoints" / saved.name)
    (folder / name).write_bytes(form(mark))
    assert checkpoint.newest(tmp_path, warn=lambda line: None) is None
    if name != "manifest.json":  # and if the manifest was forged to match
        manifest = json.loads((folder / "manifest.json").read_text())
        data = (folder / name).read_bytes()
        manifest[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        # JSON is read when it is verified, and the one before is taken; weights are read later
        assert checkpoint.newest(tmp_path, warn=lambda line: None) == (None if name.endswith(".json") else folder)
        assert refused(read_all, folder)


@pytest.mark.parametrize("name", ["../evil", "/evil"])
def test_a_checkpoint_cannot_refer_to_files_elsewhere(saved, tmp_path, name):
    folder = shutil.copytree(saved, tmp_path / "checkpoints" / saved.name)
    manifest = json.loads((folder / "manifest.json").read_text()) | {name: {"size": 0, "sha256": ""}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    warnings = []
    assert checkpoint.newest(tmp_path, warnings.append) is None and "not a file of this folder" in warnings[0]
    index = json.loads((folder / "index.json").read_text())
    index["odd"]["parts"] = [[0, 7, name]]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not in its folder"):
        checkpoint.Reader(folder).read("odd", 0, 7)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder as `export` writes it: model, processor, run configuration."""
    folder = tmp_path_factory.mktemp("exported")
    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    ImpForPreTraining(ImpConfig(**tiny, num_experts=2, moe_layers="last:1")).save_pretrained(folder)
    captions = [f"{start} the digit {word}." for start in ("a photo of", "this is") for word in ("one", "two", "three", "seven")]
    tokenizer = train_tokenizer(captions, 40, max_length=16)
    ImpProcessor(ImpImageProcessor(), ImpVideoProcessor(), ImpFeatureExtractor(), tokenizer).save_pretrained(folder)
    get_recipe("digits_debug").save(folder)
    return folder


# every way in which the project, or one who uses its models, reads a folder
READERS = {
    "AutoModel": AutoModel.from_pretrained,
    "ImpModel": ImpModel.from_pretrained,
    "ImpForPreTraining": ImpForPreTraining.from_pretrained,
    "AutoConfig": AutoConfig.from_pretrained,
    "AutoProcessor": AutoProcessor.from_pretrained,
    "ImpProcessor": ImpProcessor.from_pretrained,
    "AutoTokenizer": AutoTokenizer.from_pretrained,
    "load_tokenizer": load_tokenizer,
    "load_model": load_model,
    "RunConfig": RunConfig.load,
}


@FORMS
def test_every_file_of_an_exported_model(exported, tmp_path, mark, form):
    assert not [name for name, read in READERS.items() if refused(read, exported)]
    stopped = {}
    for file in [path.name for path in exported.iterdir()]:
        folder = shutil.copytree(exported, tmp_path / f"with_{file}")
        (folder / file).write_bytes(form(mark))
        stopped[file] = {name for name, read in READERS.items() if refused(read, folder)}
    assert all(stopped.values()), stopped  # each file is read by somebody, who refuses it
    assert {"AutoModel", "ImpModel", "ImpForPreTraining", "load_model"} <= stopped["model.safetensors"]


@FORMS
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "adapter_model.bin", "tokenizer.model", "spiece.model"])
def test_a_pickle_beside_or_instead_of_the_weights(exported, tmp_path, mark, form, name):
    beside = shutil.copytree(exported, tmp_path / "beside")
    (beside / name).write_bytes(form(mark))
    assert not refused(READERS["AutoModel"], beside)  # the safetensors are taken
    instead = shutil.copytree(beside, tmp_path / "instead")
    (instead / "model.safetensors").unlink()
    for reader in ("AutoModel", "ImpModel", "ImpForPreTraining", "load_model"):
        assert refused(READERS[reader], instead), reader
    for reader in ("AutoProcessor", "AutoTokenizer", "load_tokenizer"):
        refused(READERS[reader], instead)


def test_code_that_comes_with_a_model_is_not_imported(exported, tmp_path, mark):
    folder = shutil.copytree(exported, tmp_path / "evil")
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('it ran')\nclass Evil: pass\n")
    kinds = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor")
    for path in folder.glob("*.json"):
        found = json.loads(path.read_text())
        if path.name not in ("run_config.json", "tokenizer.json"):
            path.write_text(json.dumps(found | {"auto_map": dict.fromkeys(kinds, "evil.Evil")}))
    assert not [name for name, read in READERS.items() if refused(read, folder)]  # ours are taken instead


@FORMS
def test_corpora_and_configurations(tmp_path, mark, form):
    folder = tmp_path / "birds" / "train"
    folder.mkdir(parents=True)
    data = form(mark)
    for name in ("metadata.jsonl", "0.png", "0.mp4", "0.wav", "classes.json", "ds.json", "run_config.json"):
        (folder / name).write_bytes(data)
    for name in ("train-0.parquet", "train-0.tar", "train-0.tar.idx", "train-1.tar"):
        (folder / name).write_bytes(data)
    settings = DataSettings(cache_dir=str(tmp_path / "cache"))
    view, raw = VisionView(frames=8), lambda name: Media(name, path=folder / name)

    def open_it(source_format: str):
        return lambda: open_reader(tmp_path, Source(path="birds/train", format=source_format, vision="png"), "train", settings)

    readers = {
        "metadata": lambda: open_reader(tmp_path, Source(path="birds", vision="file_name"), "train", settings),
        "Parquet": open_it("parquet"),
        "tar": open_it("webdataset"),
        "data set": open_it("huggingface"),
        "image": lambda: read_image(raw("0.png")),
        "film": lambda: read_video(raw("0.mp4"), view, None, MediaCache(0)),
        "sound": lambda: open_recording(raw("0.wav")).samples(),
        "classes": lambda: load_classes(folder / "classes.json", "digits"),
        "DeepSpeed": lambda: ds_config.load(folder / "ds.json"),
        "run": lambda: RunConfig.load(folder),
    }
    for name, read in readers.items():
        with pytest.raises((UserError, BadSample)):  # refused by us, in words
            read()
            pytest.fail(name)
