"""A language model with experts, made of a base in a folder, starts and trains the same in any layout.

The reference is one process without DeepSpeed: the base loaded by transformers, its experts made at once, plain PyTorch, the mean
over all supervised tokens of the global batch, and torch's AdamW. Texts differ in the number of their supervised tokens, those of
the second half of the ranks have one each; in the second step all tokens are the same, so that one rank's experts have none of
them. """

import json
from fnmatch import fnmatchcase

import pytest
import torch
import upcycled_worker
from safetensors.torch import load_file
from upcycled_worker import STEPS, Layout

from helpers.language_models import HIDDEN
from helpers.ranks import run_layouts
from helpers.upcycled_run import batch_of, config_of, save_base
from imp_ds.families import family_of
from imp_ds.models.uni_moe.experts import expert_feed_forwards
from imp_ds.models.uni_moe.upcycling import from_base

pytestmark = pytest.mark.distributed

TRAINED = ("*router*", "*q_proj*")
LAYOUTS = [
    *(Layout(1, 1, stage) for stage in (0, 2)), *(Layout(2, ep_size, stage) for ep_size in (1, 2) for stage in range(4)),
    *(Layout(4, 4, stage) for stage in range(4)), Layout(4, 2, 3), Layout(4, 2, 1, trainable=TRAINED),
    Layout(2, 2, 2, "mixtral", losses=True), Layout(2, 2, 3, "mixtral"),
    Layout(2, 2, 3, checkpointing=True, trainable=TRAINED),
    Layout(2, 2, 1, "tied", checkpointing=True), Layout(2, 2, 3, "tied"),
    *(Layout(2, ep_size, stage, "half", trainable=("*router*",)) for ep_size, stage in ((1, 0), (2, 3))),
]  # fmt: skip


HANDED = [Layout(2, 2, 3, trainable=TRAINED), Layout(2, 1, 2, trainable=TRAINED), Layout(2, 1, 3, trainable=TRAINED)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    save_base(folder / "llama")
    save_base(folder / "tied", tie_word_embeddings=True)
    save_base(folder / "mixtral", "mixtral")
    save_base(folder / "half", dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def folder(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("upcycled")
    run_layouts(upcycled_worker.train, LAYOUTS, str(bases), HANDED, folder=folder, limit_s=150)
    return folder


@pytest.fixture(scope="module")
def references(bases):
    found = {}

    def of(layout: Layout):
        key = layout._replace(ep_size=1, stage=0, ranks=layout.ranks if layout.losses else 1)
        if key not in found:
            found[key] = reference(key, bases)
        return found[key]

    return of


def reference(layout: Layout, bases) -> tuple[list[list[float]], dict[str, torch.Tensor], list[list[bool]]]:
    """(loss, gradient norm) of each step; the weights after them; and which experts of each layer had tokens in the second
    one."""
    run = layout.run(bases)
    model = family_of(run).build(config_of(run), seed=run.train.seed, ep_size=1)
    language_model = model.uni_moe.language_model
    stored = load_file(bases / layout.kind / "model.safetensors")
    taken = from_base(stored, language_model, HIDDEN, noise=run.model.expert_noise, seed=run.train.seed)
    assert not language_model.load_state_dict(taken, strict=False).unexpected_keys
    for mixture in expert_feed_forwards(model):
        mixture.moe.router.float()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in layout.trainable or "*"))
    groups = {True: [], False: []}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and not any(parameter is other for group in groups.values() for other in group):
                groups[model.decays(module, name)].append(parameter)
    groups = [{"params": group, "weight_decay": 0.01 * decays} for decays, group in groups.items() if group]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=run.optimizer.betas, eps=run.optimizer.eps)
    found = []
    for step in range(STEPS):
        parts = [batch_of(step).map(lambda x, i=i: x.chunk(layout.ranks)[i]) for i in range(layout.ranks)]
        weights = torch.stack([model.weight(part) for part in parts])
        # as one batch, but for the losses of routers, which are means over a rank's samples
        loss = sum(model(part).loss * weight for part, weight in zip(parts, weights)) / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        trained = [parameter for group in groups for parameter in group["params"]]
        norm = torch.stack([p.grad.double().square().sum() for p in trained]).sum().sqrt()
        optimizer.step()
        found.append([loss.item(), norm.item()])
        if step == 1:
            used = [(mixture.report.usage_E > 0).tolist() for mixture in expert_feed_forwards(model)]
    return found, {name: parameter.detach() for name, parameter in model.named_parameters()}, used


def test_experts_of_a_rank_are_left_without_tokens(references):
    """Those of the first rank, 0 and 1, in the first layer, and those of the second one in the other."""
    _, _, used = references(LAYOUTS[0])
    assert used == [[False, False, True, True], [True, True, False, False]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_it_equals_one_process(folder, references, layout):
    check(folder, str(layout), *references(layout)[:2])


def test_a_run_goes_on_from_its_checkpoints_in_other_layouts(folder, references):
    """What is not trained is referred to in the base's folder, but for experts, which lie nowhere as they are: one file of each
    of the first ranks, written once."""
    check(folder, "handed", *references(HANDED[0])[:2])
    found = json.loads((folder / "handed" / "references.json").read_text())
    assert "model.safetensors" in found and len(found) == 3


def check(folder, name: str, steps: list[list[float]], weights: dict[str, torch.Tensor]) -> None:
    found = json.loads((folder / f"{name}.json").read_text())
    # in bfloat16 tokens are rounded to 8 bits in each layer, and other batches give other sums
    half = "half" in name
    torch.testing.assert_close(torch.tensor(found), torch.tensor(steps), rtol=0.02 if half else 1e-4, atol=1e-6)
    own = load_file(folder / f"{name}.safetensors")
    assert own.keys() == weights.keys()
    for key, value in weights.items():
        assert own[key].dtype == value.dtype == (torch.bfloat16 if half and "router" not in key else torch.float32), key
        torch.testing.assert_close(
            own[key], value, rtol=0, atol=0.02 if half else 1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
