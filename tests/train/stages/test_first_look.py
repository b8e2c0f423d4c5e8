"""What a later stage would be refused for is said before the first stage is trained, and by `doctor`."""

import pytest
from transformers import LlamaConfig

from imp_ds.commands.doctor.recipe import examine_run
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.settings import LoraSettings, UniMoeSettings
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.stages import Stage, StagedRun
from imp_ds.tasks import Source, Task
from imp_ds.train.stages import driver
from imp_ds.train.stages.first_look import check_stages

SHAPE = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


def one(name: str, patterns: list[str], **model) -> RunConfig:
    view = Views(messages=MessagesView(length=64))
    task = Task(name="chat", source=Source(path=".", messages="messages"), views=view, objectives=[NextToken()], batch_size=4)
    train = TrainSettings(steps=2, trainable=patterns)
    return RunConfig(name=name, model=UniMoeSettings(**model), data=DataSettings(), tasks=[task], train=train)


@pytest.fixture
def staged(tmp_path):
    """Builds a recipe: a specialist by LoRA, then a mixture of it and of `slot`."""
    for name, width in (("base", 32), ("wide", 48)):
        LlamaConfig(**SHAPE | {"intermediate_size": width}).save_pretrained(tmp_path / name)
    base = str(tmp_path / "base")

    def build(slot: str = "base", target: str = "up_proj", patterns=("*.lora.*",), routers="*.router.weight") -> StagedRun:
        lora = LoraSettings(r=2, target_modules=[target])
        law = one("law", list(patterns), language_model=base, lora=lora)
        experts = {"law": "stage:law", "other": str(tmp_path / slot)}
        both = one("both", [routers], language_model=base, experts=experts)
        return StagedRun(name="two", stages=[Stage(name="law", run=law), Stage(name="both", run=both)])

    return build


def test_stages_that_fit_are_fine_before_any_of_them_is_trained(staged, tmp_path):
    check_stages(staged(), ["law", "both"], tmp_path / "out")
    check_stages(staged(slot="wide"), ["law"], tmp_path / "out")


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(slot="wide"), "stage both: model.experts.other: its model has another intermediate_size"),
        (dict(slot="nowhere"), "stage both: model.experts.other is not there"),
        (dict(target="up_prj"), "stage law: model.lora.target_modules: the language model has no such linear layer"),
        (dict(patterns=["*.q_proj.weight"]), "stage law: model.lora is not trained"),
        (dict(routers="*.ruter.*"), "stage both: train.trainable: the model has no such parameter"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_its_stage(staged, tmp_path, wrong, said):
    with pytest.raises(UserError) as refused:
        check_stages(staged(**wrong), ["law", "both"], tmp_path / "out")
    assert str(refused.value).startswith(said)
    if wrong.get("slot") == "nowhere":
        assert "--set both.model.experts.other=FOLDER" in str(refused.value)


def test_nothing_is_trained_where_the_last_stage_cannot_be(staged, tmp_path, monkeypatch):
    monkeypatch.setattr(driver._Wave, "run", lambda wave: pytest.fail("a stage was trained"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="stage both: model.experts.other"):
        driver.train_stages(staged(slot="wide"), tmp_path / "out", ["false"])
    assert not (tmp_path / "out").exists()


def test_doctor_says_it_too(staged, tmp_path):
    run = staged(slot="wide").planned("both", tmp_path / "out")
    assert "another intermediate_size" in examine_run(run, "both", tmp_path / "out")[1].found
