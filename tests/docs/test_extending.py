"""Each example of docs/extending.md, copied out of the page, in a package of its own: it works without a change elsewhere."""


import pytest

from helpers.pages import run_beside, shown_files
from imp_ds.errors import UserError

_SETTINGS = """
import torch
from imp_ds import ImpForPreTraining, ImpModel, RunConfig, Task, Source, Views, VisionView, ModelSettings, TrainSettings
from imp_ds.errors import UserError
from imp_ds.tasks import Batch
from imp_ds.planning.plan import plan

SMALL = ModelSettings(size="tiny", num_hidden_layers=2, hidden_size=16, intermediate_size=32, vision_patch=(1, 4, 4),
                      vision_max=(1, 8, 8), num_experts=2, moe_layers="last:1", gate="attribute")
"""


def test_an_objective_is_planned_built_trained_saved_and_described(tmp_path):
    out = run_beside(
        shown_files("extending.md"),
        _SETTINGS
        + """
import my_objectives
run = RunConfig.model_validate({
    "name": "ages", "model": SMALL, "train": TrainSettings(steps=2),
    "tasks": [{"name": "age", "batch_size": 4, "source": {"path": "faces", "vision": "image", "label": "age"},
               "views": {"vision": {"height": 8, "width": 8}},
               "objectives": [{"kind": "label_regression", "modality": "vision"}]}],
})
assert RunConfig.model_validate_json(run.model_dump_json()) == run
config = run.model.to_config(run.data.vocab_size, run.tasks)
# 4 samples, width 16: forward and both gradients are 3 * 2 * 4 * 16 = 384 FLOPs more than the same task without it
task = run.tasks[0]
assert task.needs.label and task.objectives[0].describe() == "regression of a number from vision"
counted = plan(run, 1, 1)
torch.manual_seed(0)
model = ImpForPreTraining(config)
assert counted.parameters.total == sum(p.numel() for p in model.parameters())
batch = Batch("age", {"vision": {"pixel_values": torch.rand(4, 4, 48), "pixel_positions": torch.tensor(
    [[0.0, y / 2, x / 2] for y in range(2) for x in range(2)]).expand(4, 4, 3)}}, {"label": torch.tensor([3, 40, 7, 61])})
first, metrics, _ = model(batch)
# a head that gives about 0 is wrong by the mean of the labels, 27.75
assert abs(metrics["error/vision"].item() - 27.75) < 3, metrics
first.backward()
with torch.no_grad():
    for p in model.parameters():
        if p.grad is not None:
            p -= 0.01 * p.grad
assert model(batch)[0] < first
model.save_pretrained("saved")
again = ImpForPreTraining.from_pretrained("saved")
assert torch.equal(again(batch)[0], model(batch)[0])
# without the module's kind the encoder loads all the same; the heads say what is missing
del my_objectives.LabelRegression.kinds["label_regression"]
ImpModel.from_pretrained("saved")
try:
    ImpForPreTraining.from_pretrained("saved")
except UserError as error:
    print(error)
""",
        tmp_path,
    )
    assert "label_regression" in out and "import the module that registers it" in out


def test_an_objective_that_leaves_something_open_is_refused_at_import():
    page = shown_files("extending.md")["my_objectives.py"]
    with pytest.raises(UserError, match="(?s)LabelRegression does not define all parts.*no kernels"):
        exec(page.replace("    def kernels(self, shape):", "    def costs(self, shape):"), {"__name__": "mine"})


def test_a_router_decides_is_planned_trained_and_saved(tmp_path):
    out = run_beside(
        shown_files("extending.md"),
        _SETTINGS
        + """
import my_routers
from imp_ds.moe.routers.registry import ROUTERS, build_router
from imp_ds.moe.routing import RoutingContext
from imp_ds.families.imp.costs.flops_experts import expert_rows

# by hand: 0.7 needs both of 0.6 and 0.3, and 0.8 alone is enough; the third token is padding
router = build_router("top_p", 3, 3, {"mass": 0.7})
router.weight.data = torch.eye(3)
tokens = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]]).log()
routing = router(tokens, RoutingContext(3, torch.tensor([True, True, False])))
assert routing.token_index_N.tolist() == [0, 0, 1] and routing.count_E.tolist() == [1, 1, 1]
torch.testing.assert_close(routing.weight_N, torch.tensor([0.6, 0.3, 0.8]))

settings = {**SMALL.model_dump(exclude_unset=True), "gate": "token", "num_experts": 4, "router": "top_p",
            "router_options": {"mass": 0.7}}
run = RunConfig.model_validate({
    "name": "routed", "model": settings, "train": {"steps": 2},
    "tasks": [{"name": "digits", "batch_size": 4, "source": {"path": "digits", "vision": "image", "label": "digit"},
               "views": {"vision": {"height": 8, "width": 8}},
               "objectives": [{"kind": "classification", "modality": "vision", "num_classes": 10}]}],
})
assert RunConfig.model_validate_json(run.model_dump_json()) == run
config = run.model.to_config(run.data.vocab_size, run.tasks)
# 16 tokens in 4 examples; 0.7 of 4 equally probable experts are 2.8, so 3 of them
assert config.planned_router.rows(4, 4) == 48 and not config.tokens_compete
assert expert_rows(config, samples=4, length=4) == 48
counted = plan(run, 1, 1)
torch.manual_seed(0)
model = ImpForPreTraining(config)
batch = Batch("digits", {"vision": {"pixel_values": torch.rand(4, 4, 48), "pixel_positions": torch.tensor(
    [[0.0, y / 2, x / 2] for y in range(2) for x in range(2)]).expand(4, 4, 3)}}, {"label": torch.tensor([3, 4, 7, 6])})
assert counted.parameters.total == sum(p.numel() for p in model.parameters())
loss, _, _ = model(batch)
loss.backward()
assert any(p.grad.any() for name, p in model.named_parameters() if "router" in name)
model.save_pretrained("saved")
again = ImpForPreTraining.from_pretrained("saved")
assert torch.equal(again.eval()(batch)[0], model.eval()(batch)[0])
try:
    run.override(["model.router=top_q"])
except UserError as error:
    assert "did you mean top_p" in str(error), error
del ROUTERS._found["top_p"]  # as where its module is not imported
try:
    ImpModel.from_pretrained("saved")
except UserError as error:
    print(error)
""",
        tmp_path,
    )
    assert "unknown router" in out and "import the module that registers it" in out


def test_a_router_that_leaves_something_open_is_refused_at_import():
    page = shown_files("extending.md")["my_routers.py"]
    with pytest.raises(UserError, match="(?s)TopPRouter does not define all parts.*no rows"):
        exec(page.replace("    def rows(self", "    def count(self"), {"__name__": "mine"})
