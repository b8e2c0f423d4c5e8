"""The adapter to mteb by its interface alone: what comes in batches, what vectors go out. With mteb installed also its protocol,
and tasks of one's own data that give the accuracy of `imp_ds eval`."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.exported import NAMES, SEEN, export, write_media
from imp_ds.commands.evaluate import evaluate
from imp_ds.commands.exported_model import load_model
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators
from imp_ds.evaluation import evaluate as run_evaluators
from imp_ds.evaluation.harness import MtebModel
from imp_ds.evaluation.harness.suites import load_mteb, named_tasks, run_own
from imp_ds.evaluation.split import Split
from imp_ds.evaluation.zero_shot import class_vectors

needs_mteb = pytest.mark.skipif(find_spec("mteb") is None, reason='needs mteb: pip install "imp_ds[eval]"')


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of the model, its run, its corpus)."""
    root, folder = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("run") / "model"
    write_media(root)
    return folder, export(root, folder), root


def batches(items: dict[str, list], size: int) -> list[dict[str, list]]:
    """As mteb's DataLoader gives them."""
    count = len(next(iter(items.values())))
    return [{kind: values[i : i + size] for kind, values in items.items()} for i in range(0, count, size)]


def items(root) -> dict[str, list]:
    """Of each kind its items, in all shapes in which they come."""
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    wave = draw.normal(size=4000).astype(np.float32)
    samples = SimpleNamespace(data=torch.from_numpy(np.stack([wave, wave])), sample_rate=16000)
    frames = draw.integers(0, 256, (6, 3, 16, 16), dtype=np.uint8)
    decoder = type("Decoder", (), {
        "__len__": lambda self: 6, "get_frames_at": lambda self, indices: SimpleNamespace(data=torch.from_numpy(frames[indices])),
    })()  # fmt: skip
    image, video, audio = (str(root / kind / "test" / f"0.{suffix}") for kind, suffix in
                           (("image", "png"), ("video", "mp4"), ("audio", "wav")))  # fmt: skip
    with open(image, "rb") as file:
        content = file.read()
    return {
        "text": ["red", "a green square", "something blue", "red", "", "and so on, longer than a view has room for"],
        "image": [Image.fromarray(picture), picture, image, {"path": image, "bytes": None}, {"path": None, "bytes": content}],
        "audio": [{"array": wave, "sampling_rate": 16000}, SimpleNamespace(get_all_samples=lambda: samples), audio,
                  {"path": audio, "bytes": None}],
        "video": [frames, decoder, video, {"path": video, "bytes": None}],
    }  # fmt: skip


def test_vectors_are_those_of_the_model_whatever_the_batch_and_the_shape_of_an_item(exported):
    folder, _, root = exported
    model, found = MtebModel(folder), {}
    for kind, values in items(root).items():
        found[kind] = model.encode(batches({kind: values}, 1))
        assert found[kind].dtype == np.float32 and found[kind].shape == (len(values), found["text"].shape[1])
        assert np.abs(found[kind] - model.encode(batches({kind: values}, 8))).max() < 1e-6  # no row depends on its batch
        lengths = [float(value != "") for value in values] if kind == "text" else 1.0  # an empty text has no direction
        assert np.abs(np.linalg.norm(found[kind], axis=1) - lengths).max() < 1e-5
    equal = lambda kind, *places: all(np.abs(found[kind][places[0]] - found[kind][p]).max() < 1e-6 for p in places)  # noqa: E731
    assert equal("text", 0, 3) and not equal("text", 0, 1)
    assert equal("image", 0, 1) and equal("image", 2, 3, 4) and not equal("image", 0, 2)
    assert equal("audio", 0, 1) and equal("audio", 2, 3) and not equal("audio", 0, 2)
    assert equal("video", 0, 1) and equal("video", 2, 3) and not equal("video", 0, 2)
    with torch.no_grad():
        inputs = model.processor(images=[items(root)["image"][0]])
        assert np.abs(model.model.get_features("vision", **inputs).pooler_output.numpy() - found["image"][:1]).max() < 1e-6


def test_an_item_of_two_modalities_has_the_mean_of_its_vectors(exported):
    folder, _, root = exported
    model, given = MtebModel(folder), {kind: items(root)[kind][:3] for kind in ("text", "image")}
    text, image = (model.encode(batches({kind: values}, 2)) for kind, values in given.items())
    both = (text + image) / np.linalg.norm(text + image, axis=1, keepdims=True)
    assert np.abs(model.encode(batches({**given, "id": ["a", "b", "c"]}, 2)) - both).max() < 1e-6
    assert torch.allclose(model.similarity(text, image), torch.from_numpy(text @ image.T), atol=1e-6)
    assert torch.allclose(model.similarity_pairwise(text, image), torch.from_numpy((text * image).sum(1)), atol=1e-6)
    with pytest.raises(UserError, match="nothing to encode"):
        model.encode([{"id": ["a"]}])


def test_the_mean_of_prompts_ranks_as_that_of_a_pairs_vectors(exported):
    """Blocks of unlike length would weigh classes: each block of a class is a unit vector, as the pair's class vector is."""
    folder, run, root = exported
    modality, views = SEEN["audio"]
    prompts = {name: [f"a {name} square", f"something {name}", name] for name in NAMES}
    model = MtebModel(folder).seen_as(views, prompts)
    paths = [str(root / "audio" / "test" / f"{row}.wav") for row in range(7)]  # the last has three windows
    cosines = model.similarity(model.encode([{"audio": paths}]), model.encode([{"text": NAMES}]))
    record = next(record for record in run.evaluations if record.name == "audio")
    network, processor = load_model(folder)
    (evaluator,) = build_evaluators(run.model_copy(update={"evaluations": [record]}), processor, "test", heads_of=())
    run_evaluators(network, [evaluator])
    with torch.no_grad():
        expected = evaluator.vectors_NC @ class_vectors(evaluator._texts(network.imp, sum(prompts.values(), [])), 3).T
    ratio = cosines / expected  # one factor for all: how many blocks each side fills
    assert ratio.std() < 1e-3 * ratio.mean()


def test_what_is_missing_is_said_with_how_to_install_it(monkeypatch, exported):
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    with pytest.raises(UserError, match=r"(?s)need mteb.*imp_ds\[eval\]"):
        load_mteb()
    with pytest.raises(UserError, match="cannot be read"):
        MtebModel(exported[0]).seen_as(SEEN["image"][1]).encode([{"image": ["nowhere.png"]}])


@needs_mteb
def test_own_tasks_give_the_accuracy_of_eval_through_mteb(exported, tmp_path):
    folder, run, root = exported
    model = MtebModel(folder)
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(model, EncoderProtocol)
    assert model.mteb_model_meta.modalities == ["image", "video", "audio", "text"]
    scores = {size: run_own(model, Split(run, model.processor, "test"), tmp_path, batch_size=size) for size in (1, 8)}
    assert scores[1] == scores[8] and all(score.reason == "" for score in scores[1])
    expected = evaluate(folder, root, "test")
    assert [score.value for score in scores[1]] == [expected[f"zero_shot/{kind}/top1"] for kind in ("image", "video", "audio")]
    with pytest.raises(UserError, match=r"(?s)no such benchmark or task.*MIEB\(lite\)"):
        named_tasks("MIEB(light)")
