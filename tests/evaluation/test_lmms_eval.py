"""The adapter to lmms-eval, against a stand-in that has its interface: base class, registry, manifest, and the requests as its
tasks make them."""

import abc
import importlib
import sys
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from helpers.talking import export_talking
from imp_ds.errors import UserError

REGISTRY = {}
GREEDY = {"max_new_tokens": 6, "temperature": 0.0, "until": []}


class Lmms(abc.ABC):
    """As lmms_eval.api.model.lmms."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@dataclass
class Instance:
    args: tuple


def register_model(*names):
    def decorate(cls):
        assert issubclass(cls, Lmms)
        return REGISTRY.update(dict.fromkeys(names, cls)) or cls

    return decorate


@pytest.fixture(scope="module")
def harness():
    """The adapter's module, imported beside the stand-in."""
    made = {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.models": {}, "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.registry": {"register_model": register_model},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in made.items():
            module = ModuleType(name)
            module.__dict__.update(attributes)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "imp_ds.evaluation.lmms_eval", raising=False)
        yield importlib.import_module("imp_ds.evaluation.lmms_eval")
        del sys.modules["imp_ds.evaluation.lmms_eval"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder, model, processor = export_talking(tmp_path_factory.mktemp("harness"))
    return folder.parent, model.uni_moe, processor


@pytest.fixture
def adapter(harness, exported):
    root = exported[0]
    made = REGISTRY[harness.manifest().model_id](pretrained=str(root / "model"), batch_size="3")
    samples, rate = soundfile.read(root / "a.wav")
    docs = [
        {"question": "which digit is this?", "media": [("image", Image.open(root / "a.png"))]},
        {"question": "what is said?", "media": [("audio", {"array": samples, "sampling_rate": rate})]},
        {"question": "which digit is this?", "media": [("image", str(root / "a.png")), ("audio", str(root / "a.wav"))]},
        {"question": "where does it go?", "media": [("video", str(root / "a.mp4"))]},
        {"question": "is three even?", "media": []},
    ]
    made.task_dict = {"talk": {"test": docs}}
    return made


def doc_to_messages(doc) -> list[dict]:
    media = [{"type": kind, "url": value} for kind, value in doc["media"]]
    return [{"role": "user", "content": [*media, {"type": "text", "text": doc["question"]}]}]


def ask(number: int, **kwargs) -> Instance:
    """As ConfigurableMessagesTask.construct_requests makes it."""
    return Instance(("", doc_to_messages, {**GREEDY, **kwargs}, number, "talk", "test"))


def inputs_of(processor, *parts):
    messages = [[{"role": "user", "content": list(parts)}]]
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs={"return_tensors": "pt"}
    )


def alone(exported, number: int, tokens: int = 6) -> str:
    """Greedy generation for one document alone, its media read without the project."""
    root, model, processor = exported
    image = {"type": "image", "image": np.asarray(Image.open(root / "a.png"))}
    audio = {"type": "audio", "audio": soundfile.read(root / "a.wav", dtype="float32")[0]}
    parts = {0: [image], 1: [audio], 2: [image, audio], 4: []}[number]
    text = {0: "which digit is this?", 1: "what is said?", 2: "which digit is this?", 4: "is three even?"}[number]
    inputs = inputs_of(processor, *parts, {"type": "text", "text": text})
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_it_is_found_by_its_entry_point_as_a_chat_model(harness):
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"]["imp_ds"] == "imp_ds.evaluation.lmms_eval:manifest"
    found = harness.manifest()
    assert REGISTRY[found.model_id] is harness.ExportedModel and not harness.ExportedModel.is_simple
    assert found.chat_class_path == "imp_ds.evaluation.lmms_eval.ExportedModel"


def test_answers_in_batches_are_those_of_each_alone_in_their_order(adapter, exported):
    requests = [ask(2), ask(0, max_new_tokens=3), ask(4), ask(1), ask(0)]
    found = adapter.generate_until(requests)
    assert found == [alone(exported, 2), alone(exported, 0, 3), alone(exported, 4), alone(exported, 1), alone(exported, 0)]
    assert len(set(found)) > 2 and (adapter.rank, adapter.world_size) == (0, 1)
    assert adapter.generate_until([ask(3)]) != [""]  # a video is read by its own tower
    assert adapter.generate_until([]) == []


def test_an_answer_ends_before_what_ends_it(adapter, exported):
    whole = alone(exported, 0)
    end = whole[len(whole) // 2 :]
    assert adapter.generate_until([ask(0, until=["never said", end])]) == [whole.split(end)[0].strip()]


def test_drawn_answers(adapter):
    torch.manual_seed(0)
    drawn = {adapter.generate_until([ask(0, temperature=3.0, do_sample=True)])[0] for _ in range(4)}
    assert len(drawn) > 1


@pytest.mark.parametrize("callable_target", [False, True])
def test_likelihood_of_a_target(adapter, exported, callable_target):
    root, model, processor = exported
    image = {"type": "image", "image": np.asarray(Image.open(root / "a.png"))}
    inputs = inputs_of(processor, image, {"type": "text", "text": "which digit is this?"})
    with torch.no_grad():
        greedy = model.generate(**inputs, do_sample=False, max_new_tokens=1)[0, -1:]
    for target, is_greedy in (("seven", False), (processor.tokenizer.decode(greedy), True)):
        visuals = lambda doc: [Image.open(root / "a.png")]  # noqa: E731
        given = (lambda doc, target=target: f" {target}") if callable_target else f" {target}"
        request = Instance(("which digit is this?", given, visuals, 0, "talk", "test"))
        ids = torch.tensor(processor.tokenizer(target.strip(), add_special_tokens=False)["input_ids"])
        # the loss of transformers: the mean over the target's tokens
        whole = torch.cat([inputs["input_ids"], ids[None]], dim=1)
        labels = torch.cat([torch.full_like(inputs["input_ids"], -100), ids[None]], dim=1)
        with torch.no_grad():
            loss = model(**inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}, labels=labels).loss
        ((log_p, found),) = adapter.loglikelihood([request])
        assert log_p == pytest.approx(-loss.item() * len(ids), rel=1e-4)
        assert found == is_greedy or len(ids) != 1  # a token that is not found again as itself decides nothing


def test_what_it_does_not_do_is_one_message(harness, exported, adapter):
    with pytest.raises(UserError, match="several rounds"):
        adapter.generate_until_multi_round([])
    with pytest.raises(UserError, match="unknown arguments(.|\n)*colour"):
        harness.ExportedModel(pretrained=str(exported[0] / "model"), colour="red")
    adapter.task_dict["talk"]["test"][0]["media"] = [("image", str(exported[0] / "a.wav"))]
    with pytest.raises(UserError, match="the image of a task cannot be read(.|\n)*a.wav"):
        adapter.generate_until([ask(0)])
