"""A run starts from an exported model, on one rank and on two, with new heads; what does not fit is refused by its setting."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from helpers.ranks import Ranks, command, end_well, run_ranks
from helpers.small_run import full_parameters, largest_difference, make_batch, make_config, make_engine, make_run, step_engine
from imp_ds import ImpProcessor
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families.imp.initial_weights import load_initial
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.upcycling import upcycle
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.models.initialization import initialize_seeded
from imp_ds.objectives import Classification
from imp_ds.parallel.expert_parallel import spread_experts
from imp_ds.parallel.groups import is_main
from imp_ds.train.engine.engine import start_process_group

STEPS = 4


def fresh_model(seed: int = 0, ep_rank: int | None = None, **settings) -> ImpForPreTraining:
    """As build_module makes it; with `ep_rank`, as it is on that rank of two that share the experts."""
    model = ImpForPreTraining(make_config(make_run(**settings)))
    if ep_rank is not None:
        spread_experts(model, 2, ep_rank)
    initialize_seeded(model, seed, 0.02)
    return model


def values(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The folder of an upcycled model of the small run: four noisy experts in the second of two layers."""
    folder = tmp_path_factory.mktemp("source")
    dense = fresh_model(seed=3, num_experts=0)
    upcycle(dense, num_experts=4, moe_layers="every:2", noise=0.3, seed=5, group_examples=1).save_pretrained(folder)
    return folder


SPARSE = dict(qk_norm=False)  # the dense model had none; the default of an encoder with experts is to have them


def test_everything_is_loaded_and_said(source):
    model = fresh_model(**SPARSE)
    lines = load_initial(model, source)
    stored = load_file(source / "model.safetensors")
    assert largest_difference(values(model), stored) == 0
    assert lines == [
        f"starting from {source}: {len(stored)} parameters loaded",
        "  fresh, not there in this shape: none",
        "  left over: none",
    ]


def test_persistent_buffers_are_taken_over(source, tmp_path):
    stored = load_file(source / "model.safetensors")
    name = "imp.blocks.1.feed_forward.router.balance_E"
    save_file({**stored, name: torch.tensor([1, 2, 3, 2**40])}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    model = fresh_model(**SPARSE)
    model.imp.blocks[1].feed_forward.router.register_buffer("balance_E", torch.zeros(4, dtype=torch.int64))
    lines = load_initial(model, tmp_path)
    assert model.get_buffer(name).tolist() == [1, 2, 3, 2**40] and lines[2] == "  left over: none"


def test_a_rank_takes_its_own_experts(source):
    stored = load_file(source / "model.safetensors")
    for rank in (0, 1):
        model = fresh_model(ep_rank=rank, **SPARSE)
        load_initial(model, source)
        for name, value in values(model).items():
            full = stored[name]
            assert torch.equal(value, full[2 * rank : 2 * rank + 2] if ".experts." in name else full), name
    w1 = stored["imp.blocks.1.feed_forward.experts.w1"]
    assert (w1[:2] - w1[2:]).abs().max() > 0.1  # the halves differ


def start_and_step(folder: str, name: str, source: str, ep_size: int) -> None:
    """Losses of the global batch from the loaded weights on, in {name}.json, and the weights after them."""
    device = start_process_group(60)
    run = make_run(ep_size=ep_size, **SPARSE)
    file = "cpu_zero2_ep2.json" if ep_size == 2 else "cpu_zero2.json"
    engine = make_engine(run, file, device, prepare_model=lambda model: load_initial(model, source))
    losses = [step_engine(engine, make_batch(step), 1e-3)[0] for step in range(STEPS)]
    weights = full_parameters(engine)
    if is_main():
        (Path(folder) / f"{name}.json").write_text(json.dumps(losses))
        save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder) / f"{name}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks_start_as_one_does(source, tmp_path):
    end_well(
        Ranks(start_and_step, str(tmp_path), name, str(source), ranks, ranks=ranks, folder=tmp_path / name)
        for name, ranks in (("one", 1), ("two", 2))
    )
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(one) == STEPS and two == pytest.approx(one, abs=1e-5)
    after = [load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    assert largest_difference(*after) < 1e-5
    # the runs began at the loaded weights: four steps of Adam at 1e-3 move a weight by 4e-3 and a little more
    loaded = largest_difference(after[0], load_file(source / "model.safetensors"))
    assert 1e-3 < loaded < 1e-2


@pytest.mark.distributed
def test_a_dense_run_is_upcycled_and_started_from(digits_corpus, tmp_path):
    """Through the command line: the run's newest checkpoint gets experts; a run of the written configuration takes it whole."""
    sets = [
        f"--set={change}"
        for change in ("model.num_experts=0", "train.steps=1", "evaluations=[]", f"data.root={digits_corpus}", "data.workers=0")
    ]
    run_dir, out, logs = tmp_path / "run", tmp_path / "sparse", tmp_path / "logs"
    run_ranks(command, "train", "digits_debug", "--output_dir", run_dir, *sets, ranks=1, folder=logs)
    chosen = ["--num_experts", "4", "--moe_layers", "0,1", "--slices", "2", "--capacity_factor", "2"]
    run_ranks(command, "upcycle", run_dir, out, *chosen, ranks=1, folder=logs)
    run, tokenizer = RunConfig.load(out), ImpProcessor.from_pretrained(out).tokenizer
    assert run.model.moe_layers == [0, 1] and run.data.root == str(digits_corpus)
    model = ImpForPreTraining(run.model.to_config(len(tokenizer), run.tasks))
    lines = load_initial(model, out, tokenizer)
    assert [line.rsplit(": ")[1] for line in lines[1:]] == ["none", "none"]
    assert largest_difference(values(model), load_file(out / "model.safetensors")) == 0
    assert not list(tmp_path.glob(".staging*"))


class TestHeads:
    def test_new_ones_stay_fresh_and_old_ones_are_left_over(self, source):
        run = make_run(**SPARSE)
        run.tasks[2].name, run.tasks[2].objectives = "image_kind", [Classification(modality="vision", num_classes=7)]
        model = ImpForPreTraining(make_config(run))
        initialize_seeded(model, 0, 0.02)
        before = values(model)
        lines = load_initial(model, source)
        head = "objectives.image_kind.parts.0.head"
        assert lines[1:] == [
            f"  fresh, not there in this shape: {head}.weight, {head}.bias",
            "  left over: objectives.image_class.parts.0.head.bias, objectives.image_class.parts.0.head.weight",
        ]
        assert torch.equal(model.get_parameter(f"{head}.weight"), before[f"{head}.weight"])
        stored = load_file(source / "model.safetensors")
        assert all(torch.equal(value, stored[name]) for name, value in values(model).items() if head not in name)

    def test_one_of_another_size_stays_fresh(self, source):
        run = make_run(**SPARSE)
        run.tasks[2].objectives[0].num_classes = 7
        lines = load_initial(ImpForPreTraining(make_config(run)), source)
        assert "parts.0.head.weight, objectives.image_class.parts.0.head.bias" in lines[1] and "head.bias" in lines[2]

    def test_an_encoder_alone_will_do(self, source, tmp_path):
        """ImpModel's folder: the names lack the prefix, and there are no heads."""
        ImpForPreTraining.from_pretrained(source).imp.save_pretrained(tmp_path)
        assert "norm.weight" in load_file(tmp_path / "model.safetensors")
        model = fresh_model(**SPARSE)
        lines = load_initial(model, tmp_path)
        stored = load_file(source / "model.safetensors")
        assert all(torch.equal(value, stored[name]) for name, value in values(model).items() if name.startswith("imp."))
        assert lines[1].count("objectives.") == 4 and lines[2].endswith("none")  # two temperatures, a head's weight and bias


@pytest.mark.parametrize("saving", [dict(max_shard_size="40KB"), dict(dtype=torch.bfloat16)])
def test_several_files_and_another_type(source, tmp_path, saving):
    model = ImpForPreTraining.from_pretrained(source).to(saving.pop("dtype", torch.float32))
    model.save_pretrained(tmp_path, **saving)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or model.dtype == torch.bfloat16
    target = fresh_model(**SPARSE)
    load_initial(target, tmp_path)
    assert target.dtype == torch.float32
    assert largest_difference(values(target), {name: value.float() for name, value in values(model).items()}) == 0


OTHERS = {
    "norms": (dict(), r"(?s)model.qk_norm = True here, False there.*--set 'model.qk_norm=false'"),
    "no experts": (dict(num_experts=0), r"(?s)model.num_experts = 0 here, 4 there.*--set 'model.num_experts=4'"),
    "more experts": (dict(num_experts=8, **SPARSE), "model.num_experts=4'"),
    "experts elsewhere": (dict(moe_layers="last:2", **SPARSE), r"(?s)model.moe_layers = \[0, 1\] here.*model.moe_layers=\[1\]'"),
    "width": (dict(hidden_size=48, **SPARSE), "model.hidden_size=32'"),
    "heads": (dict(num_attention_heads=4, **SPARSE), "model.num_attention_heads=2'"),
    "positions": (dict(vision_max=(8, 16, 16), **SPARSE), r"model.vision_max=\[4, 16, 16\]'"),
    "texts": (dict(text_max=64, **SPARSE), "model.text_max=32'"),
    "common space": (dict(common_dim=16, **SPARSE), "model.common_dim=32'"),
}


@pytest.mark.parametrize("settings, named", OTHERS.values(), ids=OTHERS.keys())
def test_another_encoder_is_refused_by_its_setting_and_nothing_is_changed(source, settings, named):
    model = fresh_model(**settings)
    before = values(model)
    with pytest.raises(UserError, match="train.init_from holds another encoder") as raised:
        load_initial(model, source)
    assert raised.match(named)
    assert largest_difference(before, values(model)) == 0


def test_a_dense_model_for_a_run_with_experts_is_sent_to_upcycle(tmp_path):
    fresh_model(num_experts=0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"imp_ds upcycle {tmp_path} OUT --num_experts 4"):
        load_initial(fresh_model(**SPARSE), tmp_path)


def test_another_tokenizer_is_refused(source, tmp_path):
    """As large, with other words."""
    mine, theirs = (train_tokenizer([f"{word} square"] * 20, 30, seed=0) for word in ("red", "tan"))
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    theirs.save_pretrained(tmp_path)
    load_initial(fresh_model(**SPARSE), tmp_path, theirs)
    with pytest.raises(UserError, match=f"(?s)not that of train.init_from.*--set data.tokenizer={tmp_path}"):
        load_initial(fresh_model(**SPARSE), tmp_path, mine)
    run = make_run(**SPARSE)
    with pytest.raises(UserError, match=f"--set 'data.tokenizer={tmp_path}'"):
        load_initial(ImpForPreTraining(run.model.to_config(60, run.tasks)), tmp_path)


def _without(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DAMAGE = {
    "a weight is missing": (lambda f: _without(f, "imp.norm.weight"), r"imp\.norm\.weight"),
    "a cut file": (lambda f: (f / "model.safetensors").write_bytes(b"\x10" * 100), "cannot be read"),
    "a pickle": (_pickled, "holds no weights"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "not the folder of an exported model"),
    "half a configuration": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "a deep configuration": (lambda f: (f / "config.json").write_text("[" * 100_000), "not usable JSON"),
    "another kind of model": (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), "model_type t5"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_is_named_and_nothing_is_changed(source, tmp_path, damage, message):
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    model = fresh_model(**SPARSE)
    before = values(model)
    with pytest.raises(UserError, match=message) as raised:
        load_initial(model, tmp_path)
    assert raised.match(str(tmp_path))
    assert largest_difference(before, values(model)) == 0
