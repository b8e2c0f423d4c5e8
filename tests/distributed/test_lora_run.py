"""A run with LoRA whose experts lie on two ranks: its export is merged and answers, its adapter is one of PEFT's."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from helpers.chat_run import TEXT, make_chat_run
from helpers.conversations import write_all
from helpers.lora_models import EXPERTS
from helpers.ranks import Ranks, command, end_well, run_ranks
from imp_ds.commands.export import export, export_adapter
from imp_ds.data.corpus import open_corpus
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.arrival import Arrival
from imp_ds.families.uni_moe.assembly import Assembly
from imp_ds.models.uni_moe.lora import CHANGES
from imp_ds.train.trained_run import open_run

pytestmark = pytest.mark.distributed
LORA = dict(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], target_parameters=EXPERTS)
IDS_BL = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """run/: trained; model/: its export; adapter/: its adapter, with the base of its language model."""
    folder = tmp_path_factory.mktemp("lora_run")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TEXT, vocab_size=128, initializer_range=0.3))
    base.save_pretrained(folder / "language")
    train = dict(steps=3, ep_size=2, trainable=["*.lora.*", "uni_moe.connectors.*"])
    run = make_chat_run(write_all(folder), train=train)
    family_of(run).processor(run, open_corpus(run)).tokenizer.save_pretrained(folder / "language")
    model = run.model.model_dump() | dict(language_model=str(folder / "language"), num_experts=2, expert_noise=0.3, lora=LORA)
    run = run.model_copy(update={"model": type(run.model)(**model)}).override(["optimizer.peak_rate=0.1"])
    line = ["train", str(run.save(folder / "run.json")), "--output_dir", str(folder / "run")]
    end_well([Ranks(command, *line, ranks=2, folder=folder / "logs")], 150)
    export(folder / "run", folder / "model")
    export_adapter(folder / "run", folder / "adapter")
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS_BL).logits


@pytest.fixture(scope="module")
def trained(folder):
    return open_run(folder / "run").load_model().uni_moe


@pytest.fixture(scope="module")
def merged(folder):
    return AutoModelForMultimodalLM.from_pretrained(folder / "model")


def test_the_export_is_merged(folder, trained, merged):
    assert merged.config.lora is None and not any(CHANGES in name for name in load_file(folder / "model" / "model.safetensors"))
    torch.testing.assert_close(logits(merged), logits(trained), rtol=1e-5, atol=1e-5)
    assert all(p.any() for name, p in trained.named_parameters() if name.endswith("lora.B"))


def test_the_export_answers(folder):
    ended = run_ranks(command, "chat", str(folder / "model"), "hello", "--max_new_tokens", "4", ranks=1, folder=folder / "chat")
    assert ended.codes == [0]


def test_peft_loads_the_adapter(folder, merged):
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"]), folder / "adapter")
    torch.testing.assert_close(logits(found), logits(merged.language_model), rtol=1e-5, atol=1e-5)
    others = load_file(folder / "adapter" / "other_weights.safetensors")
    assert others.keys() == {name for name, _ in merged.named_parameters() if name.startswith("connectors.")}
    assert all(torch.equal(value, merged.get_parameter(name)) for name, value in others.items())


def of_adapter(folder, base: str):
    """A run that starts from the adapter, on that base; and its language model."""
    run = open_run(folder / "run").run
    model = run.model.model_dump() | dict(language_model=str(folder / base), num_experts=0, lora=None)
    model["adapter"] = str(folder / "adapter")
    run = run.model_copy(update={"model": type(run.model)(**model)}).override(["train.ep_size=1"])
    family = family_of(run)
    assembly = Assembly(run, family.config(run, open_run(folder / "run").processor))
    assembly.finish(Arrival(lambda name: torch.float32), read=True)
    family.load_parts(run, assembly.model)
    return assembly.model.uni_moe


def test_a_run_starts_from_the_adapter(folder, trained):
    found = of_adapter(folder, "adapter/base")
    torch.testing.assert_close(logits(found), logits(trained), rtol=1e-5, atol=1e-5)
    own = {name: p for name, p in found.named_parameters() if CHANGES in name}
    own |= {name: p for name, p in found.named_parameters() if name.startswith("connectors.")}
    assert len(own) > 4 * 2 + 3 * 2 * 2 and all(torch.equal(p, trained.get_parameter(name)) for name, p in own.items())


def test_another_base_is_refused(folder, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(folder / "adapter" / "base")
    other.model.norm.weight.data += 1
    other.save_pretrained(folder / "other")
    with pytest.raises(UserError, match="made for another model"):
        of_adapter(folder, "other")
