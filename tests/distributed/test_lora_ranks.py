"""LoRA on linear layers and in experts, beside frozen weights, trains the same in any layout.

The reference is one process without DeepSpeed: plain PyTorch on the global batch, the mean over all supervised tokens, and
torch's AdamW. Texts differ in the number of their supervised tokens, those of the second half have one each, and in every other
step a rank's experts have no tokens (`helpers.upcycled_run`).
"""

import json
from fnmatch import fnmatchcase

import lora_worker as worker
import pytest
import torch
from lora_worker import Layout
from safetensors.torch import load_file

from helpers.ranks import run_layouts
from helpers.upcycled_run import config_of, save_base
from imp_ds.families import family_of
from imp_ds.families.arrival import Arrival
from imp_ds.families.build import meta_module
from imp_ds.families.uni_moe.adapters.files import Adapter, save_adapter
from imp_ds.families.uni_moe.assembly import Assembly
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.parallel.expert_parallel import spread_experts
from imp_ds.train import checkpoint
from imp_ds.train.start import freeze_others

pytestmark = pytest.mark.distributed
DROPOUT = 0.25
LAYOUTS = [
    Layout(2, 1, 0), Layout(2, 1, 1, DROPOUT), Layout(2, 1, 2), Layout(2, 1, 3, DROPOUT),
    Layout(2, 2, 0, DROPOUT), Layout(2, 2, 1), Layout(2, 2, 2), Layout(2, 2, 3, DROPOUT, checkpointing=True),
    Layout(4, 4, 0), Layout(4, 4, 1, DROPOUT), Layout(4, 4, 2, checkpointing=True), Layout(4, 4, 3),
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    run_layouts(worker.train, LAYOUTS, str(base), folder=folder, limit_s=200)
    return folder


@pytest.fixture(scope="module")
def references(base):
    found = {}

    def of(layout: Layout):
        if layout.dropout not in found:
            found[layout.dropout] = reference(Layout(1, 1, 0, layout.dropout), base)
        return found[layout.dropout]

    return of


def reference(layout: Layout, base) -> dict:
    """Losses and gradient norms; the weights before and after; and Adam's running mean of each gradient."""
    run = layout.run(base)
    assembly = Assembly(run, config_of(run))
    assembly.finish(Arrival(lambda name: torch.float32), read=True)
    model = assembly.model
    freeze_others(model, run.train.trainable)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=worker.RATE, betas=run.optimizer.betas, eps=run.optimizer.eps, weight_decay=0.01
    )
    steps = []
    for step in range(worker.STEPS):
        loss = model(worker.keyed_batch(step)).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.double().square().sum() for p in trained.values()]).sum().sqrt()
        optimizer.step()
        steps.append([loss.item(), norm.item()])
    means = {name: optimizer.state[p]["exp_avg"] for name, p in trained.items()}
    return dict(steps=steps, before=before, after={n: p.detach() for n, p in model.named_parameters()}, means=means)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_it_equals_one_process(folder, references, layout):
    expected = references(layout)
    found = json.loads((folder / f"{layout}.json").read_text())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected["steps"]), rtol=1e-4, atol=1e-6)
    own, after = load_file(folder / f"{layout}.safetensors"), expected["after"]
    assert own.keys() == after.keys()
    for name, value in after.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    changed = {name for name, value in own.items() if not torch.equal(value, expected["before"][name])}
    assert changed == {name for name in own if any(fnmatchcase(name, pattern) for pattern in worker.TRAINED)}
    saved = reader(folder, layout)
    for name, mean in expected["means"].items():
        held = saved.read(f"exp_avg/{name}", 0, mean.numel()).view(mean.shape)
        torch.testing.assert_close(held, mean, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_nothing_is_kept_of_what_is_frozen(folder):
    """No optimizer state, and no copy in the checkpoint but the reference to what the base has, and to its experts, once."""
    saved = reader(folder, Layout(2, 2, 2))
    trained = {name for name in saved.index if any(fnmatchcase(name, pattern) for pattern in worker.TRAINED)}
    moments = {name.partition("/")[2] for name in saved.index if name.startswith("exp_avg")}
    assert {name for name in moments if not name.startswith("exp_avg")} == {n for n in trained if not n.startswith("exp_avg")}
    own = {file for name in moments for _, _, file in saved.index[name]["parts"]}
    frozen = {file for name, entry in saved.index.items() if name not in trained for _, _, file in entry["parts"]}
    assert not own & frozen and frozen == saved.references.keys()


def test_what_two_ranks_saved_loads_bit_for_bit_on_one_and_four(folder, base):
    layout = Layout(2, 2, 2)
    expected, saved = load_file(folder / f"{layout}.safetensors"), reader(folder, layout)
    for ep_size in (1, 4):
        for rank in range(ep_size):
            model = meta_module(UniMoeForTraining, config_of(layout.run(base)))
            model = (spread_experts(model, ep_size, rank) if ep_size > 1 else model).to_empty(device="cpu")
            saved.load_weights(model)
            for name, value in model.named_parameters():
                whole = expected[name]
                part = whole.chunk(ep_size)[rank] if ".experts." in name else whole
                assert torch.equal(value, part), name


def test_an_adapter_of_two_ranks_loads_bit_for_bit_on_one_and_four(folder, base, tmp_path):
    layout = Layout(2, 2, 2)
    config, expected = config_of(layout.run(base)), load_file(folder / f"{layout}.safetensors")
    model = meta_module(UniMoeForTraining, config).to_empty(device="cpu")
    reader(folder, layout).load_weights(model)
    save_adapter(model.uni_moe.language_model, tmp_path, "base")
    adapter = Adapter(tmp_path, config.num_experts)
    for ep_size in (1, 4):
        for rank in range(ep_size):
            model = meta_module(UniMoeForTraining, config)
            found = adapter.of((spread_experts(model, ep_size, rank) if ep_size > 1 else model).uni_moe.language_model)
            assert len(found) == 2 * 2 * 2 + 2 * 3 * 2
            for name, value in found.items():
                whole = expected[f"uni_moe.language_model.{name}"]
                assert torch.equal(value, whole.chunk(ep_size)[rank] if ".experts." in name else whole), name


def reader(folder, layout: Layout) -> checkpoint.Reader:
    return checkpoint.Reader(folder / str(layout) / checkpoint.FOLDER / checkpoint.folder_name(worker.STEPS))


def test_the_family_wants_to_be_told_what_is_trained(base):
    run = Layout(1, 1, 0).run(base)
    run.train.trainable = None
    with pytest.raises(Exception, match=r"\*\.lora\.\*"):
        family_of(run).check(run, config_of(run), 1)
