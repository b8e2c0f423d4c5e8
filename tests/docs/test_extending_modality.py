"""The modality of docs/extending.md, copied out of the page: read, planned, trained, exported and loaded, from outside."""

import pytest

from helpers.pages import run_beside, shown_files
from imp_ds.errors import UserError

_RUN = """
import json
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
import my_modalities
from imp_ds import (Classification, Contrastive, DataSettings, ImpForPreTraining, ImpProcessor, ModelSettings, OptimizerSettings,
                    RunConfig, Source, Task, TrainSettings, train)
from imp_ds.commands.export import export
from imp_ds.data.inspect.check import look
from imp_ds.data.sources import open_reader
from imp_ds.planning.plan import plan

rng = np.random.default_rng(0)
labels = [row % 2 for row in range(32)]
values = [[20.0 + 10 * label + rng.normal(), 1000.0 + rng.normal()] for label in labels]
Path("stations").mkdir()
texts = ["warm" if label else "cold" for label in labels]
for split in ("train", "validation"):
    pq.write_table(pa.table({"values": [*values, [1.0], None], "kind": [*labels, 0, 0], "report": [*texts, "cold", "cold"]}),
                   f"stations/{split}.parquet")
source = Source(path="stations", format="parquet", measurements="values", label="kind", text="report")
run = RunConfig(
    name="weather", data=DataSettings(root=".", workers=0, vocab_size=40, cache_dir="cache", max_rejected=0.1),
    model=ModelSettings(size="tiny", hidden_size=16, intermediate_size=16, num_hidden_layers=1, common_dim=8, text_max=8,
                        vision_max=(4, 16, 16), audio_max=(16, 16)),
    tasks=[Task(name="kind", source=source, views={"measurements": {"count": 2}}, batch_size=16,
                objectives=[Classification(modality="measurements", num_classes=2)]),
           Task(name="match", source=source, views={"measurements": {"count": 2}, "text": {"length": 4}}, batch_size=16,
                objectives=[Contrastive(pairs=[("measurements", "text")], positives="equal")])],
    train=TrainSettings(steps=40, log_every=20, eval_every=0, save_every=0), optimizer=OptimizerSettings(peak_rate=1e-2))
assert RunConfig.model_validate_json(run.model_dump_json()) == run
found = look(open_reader(".", source, "train", run.data), run.tasks)
assert found.rows == 34 and found.left_out["kind"] == {"wrong column": 2}, found.left_out  # one number; an empty cell
(planned,) = [task for task in plan(run, 1, 1).tasks if task.name == "kind"]
assert planned.tokens == {"measurements": 2} and planned.tokens_per_step == 16 * 2, planned
train(run, "run")
export(Path("run"), Path("model"))
model, processor = ImpForPreTraining.from_pretrained("model").eval(), ImpProcessor.from_pretrained("model")
print(json.dumps(model.predict("kind", **processor(measurements=[[30.0, 1000.0], [20.0, 1000.0]]))))
"""


def test_a_modality_is_read_planned_trained_exported_and_loaded(tmp_path):
    out = run_beside(shown_files("extending.md"), _RUN, tmp_path, limit=280)
    (line,) = [line for line in out.splitlines() if line.startswith("[{")]
    warm, cold = eval(line)
    assert warm["1"] > 0.9 and cold["0"] > 0.9, out


def test_a_modality_that_leaves_something_open_is_refused_at_import():
    page = shown_files("extending.md")["my_modalities.py"]
    with pytest.raises(UserError, match="(?s)Measurements does not define all parts.*no kernels"):
        exec(page.replace("    def kernels(self", "    def kernel(self"), {"__name__": "mine"})
    with pytest.raises(UserError, match="(?s)two of one name: the modality audio"):
        exec(page.replace('kind = "measurements"', 'kind = "audio"'), {"__name__": "mine"})
