"""The card of an exported model: its example runs, and says what the model is; what export names next."""

import re

import pytest

from helpers.talking import AUDIO, VISION, make_run, small_model, write_rows
from imp_ds.commands.export import examples_of
from imp_ds.config import RunConfig
from imp_ds.families import family_of
from imp_ds.families.card import write_card
from imp_ds.families.uni_moe.model_card import origins
from imp_ds.families.uni_moe.settings import LoraSettings
from imp_ds.recipes import get_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("card")
    write_rows(root, ["seven"] * 8)
    return root


@pytest.mark.parametrize("towers, kinds", [((VISION, AUDIO), "image video audio"), ((VISION, None), "image video"),
                                           ((None, AUDIO), "audio")])  # fmt: skip
def test_the_example_of_the_card_asks_the_model(root, tmp_path, towers, kinds):
    run = make_run(root, num_experts=4, towers=towers)
    model, processor = small_model(run)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    run.save(folder)
    card = family_of(run).card(run, model.config, [], str(folder))
    write_card(folder, run, card, [], {}, experts=4, steps=1, world_size=1, parameters=1)
    text = (folder / "README.md").read_text()
    assert "layers 0, 1 (of 2, from 0) is a mixture of 4 experts, of which each token takes 2." in text
    assert f"pipeline_tag: {kinds.split()[0]}-text-to-text" in text
    assert "## What it was made of" in text and "- trained: all of it" in text
    options = "".join(f" --{kind} FILE" for kind in kinds.split())
    assert f'`imp_ds chat {folder}{options} "What is this?"`' in text
    found = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], found)  # the example, as a reader runs it
    assert isinstance(found["answer"], str) and type(found["model"]).__name__ == "UniMoeForConditionalGeneration"
    alone = family_of(run).answer(model.eval(), processor, found["question"], max_new_tokens=16)
    assert found["answer"].strip() == alone
    assert examples_of(folder) == f'imp_ds eval {folder} and imp_ds chat {folder} "QUESTION"'


def test_the_card_names_what_the_model_was_made_of(root):
    lora = LoraSettings(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=["experts.w1"])
    run = make_run(root, num_experts=4)
    connector = run.model.image_connector.model_copy(update={"start_from": "runs/align/model"})
    run.model = run.model.model_copy(update={"language_model": "runs/language/model", "lora": lora, "image_connector": connector})
    run.train.trainable = ["*.lora.*", "uni_moe.connectors.*"]
    found = origins(run)
    for part in ("run: `talking`", "language model: from `runs/language/model`", "connector of image: from `runs/align/model`",
                 "LoRA: r = 4, lora_alpha = 8, on `q_proj`, `experts.w1`; merged into the weights",
                 "trained: `*.lora.*`, `uni_moe.connectors.*`"):  # fmt: skip
        assert f"- {part}\n" in found
    run.model = run.model.model_copy(update={"lora": None, "adapter": "peft/one"})
    assert "from the adapter `peft/one`" in origins(run)


def test_export_names_the_commands_of_the_family(tmp_path):
    get_recipe("digits").save(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert examples_of(tmp_path) == f"imp_ds eval {tmp_path} and imp_ds predict {tmp_path} FILE"
    assert RunConfig.load(tmp_path / "run_config.json").name == "digits"
