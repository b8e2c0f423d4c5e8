"""Models of Uni-MoE written as classes of transformers: a process without imp_ds makes the same inputs of a conversation, the
same logits, and the same answers; and what transformers has no class for is refused with every reason."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from helpers.chat_run import PICTURES, TEXT, make_chat_run
from helpers.conversations import write_all
from helpers.ranks import command, run_ranks
from helpers.talking import make_run as talking_run
from helpers.talking import write_rows
from imp_ds.data.corpus import open_corpus
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.uni_moe.settings import ConnectorSettings
from imp_ds.recipes import get_recipe
from imp_ds.train.trained_run import open_run

FEW_ROWS = TEXT | {"vocab_size": 122}  # of 125 tokens; placeholders are the last ones
MIXTURE = dict(num_experts=4, experts_per_token=2)
QWEN = TEXT | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True}
SIGLIP = PICTURES | {"model_type": "siglip_vision_model", "num_hidden_layers": 2}
MODELS = {
    "mixtral": dict(language_model=FEW_ROWS, image_connector=ConnectorSettings(kind="mlp2x_gelu"), **MIXTURE),
    "qwen3_moe": dict(language_model=QWEN, image_tower=SIGLIP, feature_layer=-2, moe_layers="first:1", **MIXTURE),
    "llama": dict(image_connector=ConnectorSettings(kind="mlp2x_gelu")),
    "text alone": dict(image_tower=None, **MIXTURE),
}
QUESTION = "what is 3?"
STOCK = """
import sys
sys.modules["imp_ds"] = None  # importing it fails
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

for folder, images in [argument.rsplit(":", 1) for argument in sys.argv[1:]]:
    given = torch.load(f"{folder}.given", weights_only=False)
    Model, Processor = (AutoModelForImageTextToText, AutoProcessor) if images == "1" else (AutoModelForCausalLM, AutoTokenizer)
    model, info = Model.from_pretrained(folder, output_loading_info=True)
    processor = Processor.from_pretrained(folder)
    how = {"processor_kwargs": {"return_tensors": "pt"}} if images == "1" else {"return_tensors": "pt"}
    inputs = processor.apply_chat_template(given, tokenize=True, return_dict=True, add_generation_prompt=True, **how)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    loaded = {name: list(found) for name, found in info.items()}
    torch.save({"kind": type(model).__name__, "text": model.config.get_text_config().model_type, "info": loaded,
                "inputs": dict(inputs), "logits": logits, "ids": ids}, f"{folder}.found")
"""


def make_run(root, **model):
    run = make_chat_run(root)
    plain = dict(video_tower=None, audio_tower=None)
    return run.model_copy(update={"model": run.model.model_copy(update=plain | model)})


def made(run):
    family, readers = family_of(run), open_corpus(run)
    processor = family.processor(run, readers)
    return family, family.build(family.config(run, processor), seed=0, ep_size=1).eval(), processor


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def answers(root, tmp_path_factory):
    """{name: (what the model of ours gives, what a process without imp_ds gives)}"""
    folder, ours = tmp_path_factory.mktemp("stock"), {}
    image = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    for name, model in MODELS.items():
        family, net, processor = made(make_run(root, **model))
        (folder / name).mkdir()
        family.save_stock(net, processor, folder / name)
        content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}] if net.config.towers else QUESTION
        turns = [{"role": "user", "content": content}]
        torch.save(turns, folder / f"{name}.given")
        inputs = processor.apply_chat_template(
            [turns], tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs={"return_tensors": "pt"}
        )
        with torch.no_grad():
            logits = net.uni_moe(**inputs).logits
        ids = net.uni_moe.generate(**inputs, max_new_tokens=8, do_sample=False)
        ours[name] = {"inputs": dict(inputs), "logits": logits, "ids": ids}
    called = [f"{folder / name}:{int(name != 'text alone')}" for name in MODELS]
    ended = subprocess.run([sys.executable, "-c", STOCK, *called], cwd=folder, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return {name: (ours[name], torch.load(folder / f"{name}.found", weights_only=False)) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_a_process_without_this_package_answers_the_same(answers, name):
    ours, found = answers[name]
    kind = "MixtralForCausalLM" if name == "text alone" else "LlavaForConditionalGeneration"
    assert (found["kind"], found["text"]) == (kind, "mixtral" if name == "text alone" else name)
    assert not any(found["info"].values()), found["info"]
    assert torch.equal(found["inputs"]["input_ids"], ours["inputs"]["input_ids"])
    if name != "text alone":
        torch.testing.assert_close(found["inputs"]["pixel_values"], ours["inputs"]["pixel_values"], rtol=0, atol=0)
    rows = ours["logits"].shape[2]
    assert (found["inputs"]["input_ids"] >= rows).sum() == (4 if name == "mixtral" else 0)  # an image, where it has no row
    assert found["logits"].shape[2] - rows == (3 if name == "mixtral" else 0)
    torch.testing.assert_close(found["logits"][..., :rows], ours["logits"], rtol=1e-5, atol=1e-5)
    assert (found["logits"][..., rows:] == 0).all()
    assert torch.equal(found["ids"], ours["ids"]) and found["ids"].shape[1] > ours["inputs"]["input_ids"].shape[1]


NO_MORE = dict(video_tower=None, audio_tower=None)
REFUSED = {
    "it reads video; it reads audio": {},
    "a connector that pools, 2": dict(image_connector=ConnectorSettings(pool=2), **NO_MORE),
    "a connector of the kind qformer": dict(image_connector=ConnectorSettings(kind="qformer"), **NO_MORE),
    "feature_layer = -1 of SigLIP": dict(image_tower=SIGLIP, **NO_MORE),
    "it reads no images": dict(image_tower=None, video_tower=None),
    r"dense feed-forwards in layers \[1\]": dict(moe_layers="first:1", **NO_MORE, **MIXTURE),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_transformers_has_no_class_for_is_refused(root, said, tmp_path):
    run = make_chat_run(root)
    run = run.model_copy(update={"model": run.model.model_copy(update=REFUSED[said])})
    family, net, processor = made(run)
    with pytest.raises(UserError, match=f"(?s)(LLaVA is not this model|is this language model).*{said}"):
        family.save_stock(net, processor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.distributed
def test_a_run_is_exported_so(tmp_path):
    write_rows(tmp_path, ["one", "two", "three", "four", "five", "six", "seven", "eight"])
    run = talking_run(tmp_path, num_experts=2, samples=1, max_new_tokens=1, blind=False, shuffled=False)
    run = run.model_copy(update={"model": run.model.model_copy(update={"audio_tower": None, "video_tower": None})})
    run = run.override(["data.workers=0", "data.max_rejected=1.0"])
    line = ["train", str(run.save(tmp_path / "run.json")), "--output_dir", str(tmp_path / "run")]
    run_ranks(command, *line, ranks=1, folder=tmp_path / "logs")
    ended = run_ranks(command, "export", tmp_path / "run", tmp_path / "out", "--stock", ranks=1, folder=tmp_path / "logs")
    said = ended.outputs[0]
    assert "for from_pretrained of transformers alone" in said and not (tmp_path / "out" / "run_config.json").exists()
    assert "from transformers import AutoModelForImageTextToText, AutoProcessor" in (tmp_path / "out" / "README.md").read_text()
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict()
    ours = open_run(tmp_path / "run").load_model()
    norm = "language_model.model.norm.weight"
    assert torch.equal(found["model.language_model.norm.weight"], ours.get_parameter(f"uni_moe.{norm}"))
    with pytest.raises(UserError, match="(?s)family imp are no classes of transformers.*--stock"):
        family_of(get_recipe("digits_debug")).save_stock(None, None, tmp_path)
