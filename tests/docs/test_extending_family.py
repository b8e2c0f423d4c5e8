"""The model family of docs/extending.md, copied out of the page: planned, trained, exported, loaded; and what it refuses."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.pages import run_beside, shown_files
from imp_ds.errors import UserError
from imp_ds.model_settings import FamilySettings
from imp_ds.objectives import ObjectiveRecord

TEXTS = [f"a {colour} {animal} {verb}" for colour in ("red", "blue") for animal in ("dog", "cat") for verb in ("runs", "sits")]

_SCRIPT = """
import json
import torch
from my_families import LlamaFamily, LlamaForTraining, NextToken
from imp_ds import DataSettings, Evaluation, ModelSettings, RunConfig, Source, Task, TextView, TrainSettings, Views, train
from imp_ds.errors import UserError
from imp_ds.commands.export import export
from imp_ds.commands.predict import predict
from imp_ds.evaluation import build_evaluators
from imp_ds.planning.plan import plan
from pathlib import Path

source, views = Source(path="texts", format="parquet", text="caption"), Views(text=TextView(length=8))
task = Task(name="write", source=source, views=views, objectives=[NextToken()], batch_size=4, micro_batches=2)
run = RunConfig(
    name="texts", model={"family": "llama", "hidden_size": 16}, tasks=[task],
    data=DataSettings(root=".", vocab_size=40, workers=0),
    train=TrainSettings(steps=4, log_every=1, gradient_checkpointing=True), optimizer={"peak_rate": 1e-2},
)
assert RunConfig.model_validate_json(run.model_dump_json()) == run

# by hand: 32 tokens of 4 texts, width 16, 64 in the feed-forward, a vocabulary of 40; two layers with four products of the
# width and three of the feed-forward, and attention's two, and the head: forward, and twice as much backward
products = 2 * (4 * 16 * 16 + 3 * 16 * 64) + 16 * 40
attention = 2 * 2 * 8 * 16
counted = plan(run, 1, 1)
assert counted.times[0].flops == 3 * 2 * 32 * (products + attention), counted.times
model = LlamaFamily().build(run.model.to_config(40, run.tasks), seed=0, ep_size=1)
assert counted.parameters.total == sum(p.numel() for p in model.parameters())

train(run, "runs/texts")
losses = [json.loads(line)["tasks"]["write"]["loss"] for line in open("runs/texts/metrics.jsonl") if '"train"' in line]
assert len(losses) == 4 and losses[-1] < losses[0] - 0.3, losses
export("runs/texts", "model")
loaded = LlamaForTraining.from_pretrained("model")
assert loaded.lm.generate(max_length=5, do_sample=False).shape == (1, 5)
assert LlamaFamily().empty(loaded.config).lm.model.rotary_emb.inv_freq.equal(loaded.lm.model.rotary_emb.inv_freq)
assert "the next token of a text" in Path("model/README.md").read_text()

loaded.lm.save_pretrained("llama")  # as transformers has it, without our prefix
processor, fresh = LlamaFamily().load_export(Path("model"))[1], LlamaFamily().build(loaded.config, seed=1, ep_size=1)
for folder in ("model", "llama"):
    lines, sources, _ = LlamaFamily().load_initial(fresh, Path(folder), processor)
    assert all(torch.equal(p, loaded.get_parameter(name)) for name, p in fresh.named_parameters()), lines
    assert sources.keys() == dict(fresh.named_parameters()).keys()
    fresh = LlamaFamily().build(loaded.config, seed=1, ep_size=1)
larger = LlamaFamily().build(run.override(["model.hidden_size=32"]).model.to_config(40, run.tasks), seed=0, ep_size=1)

record = dict(name="texts", modality="text", source=source, views=views)
imp = ModelSettings(size="tiny")
measured_by = lambda **more: run.model_copy(update={"evaluations": [Evaluation(**record, **more)]})
for wrong in (
    lambda: build_evaluators(measured_by(), None, "validation"),
    lambda: build_evaluators(measured_by(evaluator="similarity"), None, "validation"),
    lambda: imp.to_config(40, run.tasks),
    lambda: predict(Path("model"), [Path("picture.png")]),
    lambda: LlamaFamily().load_initial(larger, Path("model"), processor),
):
    try:
        wrong()
    except UserError as error:
        print(error.one_line)
    else:
        raise AssertionError("nothing was refused")
"""


def test_a_family_is_planned_trained_exported_and_loaded(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        pq.write_table(pa.table({"caption": TEXTS}), tmp_path / "texts" / f"{split}.parquet")
    out = run_beside(shown_files("extending.md"), _SCRIPT, tmp_path)
    for said in (
        "no evaluator of the family llama measures it by itself", "the evaluator similarity measures models of the family imp",
        "models of ImpConfig do not compute the objective next_token", "no task that distinguishes classes",
        "a parameter of the model is not in train.init_from, or of another shape",
    ):  # fmt: skip
        assert said in out, out


def test_a_family_that_leaves_something_open_is_refused_at_import(monkeypatch):
    for known in (ObjectiveRecord, FamilySettings):  # the page's others are forgotten again
        monkeypatch.setattr(known, "kinds", dict(known.kinds))
    monkeypatch.setattr("imp_ds.objectives.registry.OBJECTIVES", ObjectiveRecord.kinds)
    page = shown_files("extending.md")["my_families.py"]
    for change, message in (
        (("    def processor(", "    def tokens("), "LlamaFamily does not define all parts.*no processor"),
        (("    Model = ", "    Module = "), "LlamaFamily does not define all parts.*no Model"),
        (('    kind = "llama"', '    kind = "lama"'), "settings of LlamaFamily are of another family.*llama.*lama"),
    ):
        with pytest.raises(UserError, match=f"(?s){message}"):
            exec(page.replace(*change), {"__name__": "mine"})
