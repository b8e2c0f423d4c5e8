"""An exported model in transformers' pipelines and in sentence-transformers: what they give is what the model gives.

Shapes: B batch, C width.
"""

import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import pipeline

from helpers.small_loader import processor as small_processor
from helpers.small_model import EXPERTS, assert_near, small_config
from imp_ds import ImpForPreTraining
from imp_ds.commands.sharing.sentence_files import MODULES, write_sentence_files
from imp_ds.families.imp.family import ImpFamily
from imp_ds.families.imp.model_folder import trained_temperatures
from imp_ds.objectives import task_entry

LABELS = ["images 1", "number 3", "this is 2"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, model, processor, a picture's file, a recording's)."""
    root = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    pairs = [["vision", "text"], ["audio", "text"]]
    objectives = {"match": task_entry([{"kind": "contrastive", "pairs": pairs, "temperature": 0.05}])}
    processor = small_processor()
    sizes = dict(vision_patch=(4, 8, 8), audio_patch=(16, 16), audio_max=(64, 32), text_max=256, vocab_size=60)
    trained = ImpForPreTraining(small_config(**EXPERTS, **sizes, objectives=objectives)).eval()
    with torch.no_grad():
        trained.objectives["match"].parts[0].temperatures["vision_text"].value.fill_(0.1)
    ImpFamily().finished(trained)
    folder = root / "model"
    trained.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_sentence_files(folder, ImpFamily().sentence_methods(trained.config))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "picture.png")
    samples = rng.standard_normal(5120).astype(np.float32) / 9
    soundfile.write(root / "sound.wav", samples, 16000, subtype="FLOAT")
    return folder, trained.imp, processor, root / "picture.png", samples


def test_the_learned_temperatures_are_kept(exported):
    """That of images was set to 0.1, T = relu(0.1) + 1e-6; that of audio is as it began, 0.05."""
    folder, *_ = exported
    kept = json.loads((folder / "config.json").read_text())["temperatures"]
    assert kept == pytest.approx({"vision": 0.1, "audio": 0.05}, abs=2e-6)
    assert trained_temperatures(ImpForPreTraining.from_pretrained(folder)) == kept


def test_zero_shot_images(exported):
    folder, model, processor, picture, _ = exported
    found = pipeline("zero-shot-image-classification", model=str(folder))
    found = found(str(picture), candidate_labels=LABELS, hypothesis_template="{}")
    with torch.no_grad():
        pair = model(**processor(images=picture, text=LABELS)).embeddings
    expected = (pair["vision_to_text"] @ pair["text_to_vision"].T / model.config.temperatures["vision"]).softmax(1)[0]
    assert {one["label"]: one["score"] for one in found} == pytest.approx(dict(zip(LABELS, expected.tolist())), abs=1e-5)


def test_zero_shot_audio(exported):
    folder, model, processor, _, samples = exported
    found = pipeline("zero-shot-audio-classification", model=str(folder))
    found = found(samples, candidate_labels=LABELS, hypothesis_template="{}")
    with torch.no_grad():
        pair = model(**processor(audio=samples, sampling_rate=16000, text=LABELS)).embeddings
    expected = (pair["audio_to_text"] @ pair["text_to_audio"].T / model.config.temperatures["audio"]).softmax(1)[0]
    assert {one["label"]: one["score"] for one in found} == pytest.approx(dict(zip(LABELS, expected.tolist())), abs=1e-5)


def test_features_of_texts(exported):
    folder, model, processor, *_ = exported
    found = pipeline("feature-extraction", model=str(folder))("number 3", return_tensors=True)
    with torch.no_grad():
        assert_near(found, model(**processor(text="number 3")).text_pooled)


def test_the_files_for_sentence_transformers(exported):
    folder, *_ = exported
    assert [module["path"] for module in json.loads((folder / MODULES).read_text())] == [""]
    modalities = json.loads((folder / "sentence_bert_config.json").read_text())["modality_config"]
    assert modalities["image"] == {"method": "get_image_features", "method_output_name": "pooler_output"}
    assert set(modalities) == {"text", "image", "video", "audio"}


def test_what_no_task_reads_has_no_method():
    objectives = {"words": task_entry([{"kind": "masked_language", "rate": 0.15}])}
    assert ImpFamily().sentence_methods(small_config(objectives=objectives)) == {"text": "get_text_features"}


def test_sentence_transformers_encode_to_the_same_vectors(exported):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is no requirement: the extra [eval]")
    folder, model, processor, picture, samples = exported
    sentences = library.SentenceTransformer(str(folder), device="cpu")
    assert sentences.get_embedding_dimension() == 48  # two pairs of 24
    sound = {"array": samples, "sampling_rate": 16000}
    with torch.no_grad():
        expected = {
            "text": model.get_text_features(**processor(text=LABELS)).pooler_output,
            "image": model.get_image_features(**processor(images=picture)).pooler_output,
            "audio": model.get_audio_features(**processor(audio=samples, sampling_rate=16000)).pooler_output,
        }
    assert_near(torch.from_numpy(sentences.encode(LABELS)), expected["text"])
    assert_near(torch.from_numpy(sentences.encode([Image.open(picture)])), expected["image"])
    assert_near(torch.from_numpy(sentences.encode([sound])), expected["audio"])
