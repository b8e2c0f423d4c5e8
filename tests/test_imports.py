"""Imports go down only, the lower floors own no heavy dependency, and a model loads without any of them.

Units are the packages and single modules that lie in imp_ds itself, each whole.
"""

import ast
import subprocess
import sys

import pytest

from helpers.source_tree import MODULES, ROOT, imported, imports_of, room_of

# package or single module of imp_ds -> floor, from the ground up. It imports what is on lower floors; of its own floor
# only without a circle.
FLOORS = {
    "imp_ds": 0, "costs": 0, "randomness": 0, "terminal": 0, "errors": 0, "records": 0,
    "foreign_code": 0, "json_files": 0, "written_files": 0, "overrides": 0, "registry": 0,
    "modalities": 1, "moe": 1, "parallel": 1,
    "models": 2,
    "objectives": 3,
    "tasks": 4, "evaluation_record": 4, "model_settings": 4,
    "data": 5, "config": 5, "stages": 5,
    "evaluation": 6, "families": 6,
    "recipes": 7, "train": 7,
    "planning": 8,
    "commands": 9,
    "cli": 10, "__main__": 10,
}  # fmt: skip

# distribution -> modules and packages that may import it anywhere, inside functions too
OWNERS = {
    "deepspeed": {"parallel.expert_parallel", "train"},
    "datasets": {"data", "evaluation.harness"},
    "mteb": {"evaluation.harness"},
    "av": {"data", "modalities"},
    "soundfile": {"data", "modalities"},
    "sklearn": {"data", "evaluation.probes"},
    "tensorboard": {"train"},
    "trackio": {"train"},
    "wandb": {"train"},
    "sacrebleu": {"evaluation"},
    "typer": {"cli"},
    "torchvision": set(),
    "torchaudio": set(),
}

# what is absent where someone only wants to use a model
NOT_NEEDED = (
    "deepspeed", "datasets", "av", "soundfile", "sklearn", "tensorboard", "typer", "matplotlib", "sentencepiece", "accelerate"
)  # fmt: skip


def unit_of(module: str) -> str:
    """The package or module of imp_ds itself that holds the module."""
    unit = (module.split(".")[1:] or ["imp_ds"])[0]
    assert unit in FLOORS, f"{module} has no floor: give it one in FLOORS"
    return unit


def edges() -> dict[tuple[str, str], str]:
    """(importing unit, imported unit) -> one import that makes it, over all of imp_ds."""
    found = {}
    for module in MODULES:
        for name in imports_of(module):
            if name.split(".")[0] == "imp_ds":
                pair = (unit_of(module), unit_of(name))
                if pair[0] != pair[1]:
                    found.setdefault(pair, f"{module} imports {name}")
    return found


def circle(pairs) -> list[str] | None:
    """The nodes of some circle of a directed graph, or None."""
    below = {}
    for start, end in pairs:
        below.setdefault(start, set()).add(end)
    done = set()

    def walk(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return None
        for other in sorted(below.get(node, ())):
            if found := walk(other, [*path, node]):
                return found
        done.add(node)
        return None

    return next((found for node in sorted(below) if (found := walk(node, []))), None)


def test_no_import_goes_up():
    upward = [why for (start, end), why in edges().items() if FLOORS[end] > FLOORS[start]]
    assert not upward, "\n".join(upward)


def test_no_two_units_import_each_other():
    found = edges()
    assert len(found) > 30  # the parser sees imports at all
    ring = circle(found)
    assert ring is None, [found[pair] for pair in zip(ring, [*ring[1:], ring[0]])]


def test_no_two_rooms_import_each_other_at_any_depth():
    """Rooms that lie in one another do not count: what a package says of itself in its `__init__.py` may stand on its rooms."""
    found = {}
    for module in MODULES:
        for name in imports_of(module) & MODULES.keys():
            one, other = room_of(module), room_of(name)
            if not f"{one}.".startswith(f"{other}.") and not f"{other}.".startswith(f"{one}."):
                found[one, other] = f"{module} imports {name}"
    assert len(found) > 100
    assert [(why, found[other, one]) for (one, other), why in found.items() if (other, one) in found] == []


def test_no_modules_import_each_other():
    pairs = []
    for module in MODULES:
        pairs += [(module, name) for name in imports_of(module) if name in MODULES and not module.startswith(name + ".")]
    assert circle(pairs) is None


def test_every_floor_is_used():
    assert {unit_of(module) for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("dependency", OWNERS)
def test_heavy_dependencies_stay_with_their_owners(dependency):
    users = set()
    for module in MODULES:
        if any(name.split(".")[0] == dependency or name == f"torch.utils.{dependency}" for name in imports_of(module)):
            users.add(module)
    owners = tuple(f"imp_ds.{owner}" for owner in OWNERS[dependency])
    assert all(f"{user}.".startswith(tuple(f"{owner}." for owner in owners)) for user in users), users


def test_the_parser_sees_every_way_to_import():
    source = "import imp_ds.a\ndef f():\n    from imp_ds.b import c, name\n    from . import d\n    from ..moe.x import y\n"
    known = {"imp_ds.a", "imp_ds.b", "imp_ds.b.c", "imp_ds.train.d", "imp_ds.moe.x"}
    expected = {"imp_ds.a", "imp_ds.b.c", "imp_ds.b", "imp_ds.train.d", "imp_ds.moe.x"}
    assert imported(ast.parse(source), "imp_ds.train.z", False, known) == expected
    assert imported(ast.parse("from . import d"), "imp_ds.train", True, known) == {"imp_ds.train.d"}


def test_circles_are_found():
    assert circle([("a", "b"), ("b", "c"), ("a", "c")]) is None
    assert set(circle([("a", "b"), ("b", "c"), ("c", "b")])) == {"b", "c"}


WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {NOT_NEEDED!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
folder = sys.argv[1]
import torch, imp_ds
from transformers import AutoModel, AutoProcessor
processor = AutoProcessor.from_pretrained(folder)
assert type(processor) is imp_ds.ImpProcessor and processor(text="nine")["input_ids"].shape[0] == 1
model = imp_ds.ImpModel.from_pretrained(folder)
again = AutoModel.from_pretrained(folder)
with torch.no_grad():
    pooled = [m(input_ids=torch.tensor([[1, 2, 3]])).text_pooled for m in (model, again)]
assert torch.equal(*pooled)
try:
    import deepspeed
except ImportError:
    print("loaded", sorted(name for name in sys.modules if name.split(".")[0] in {NOT_NEEDED!r}))
"""


def test_a_model_and_its_processor_load_without_what_only_training_needs(tmp_path):
    from helpers.small_loader import processor
    from imp_ds import ImpConfig, ImpForPreTraining

    processor().save_pretrained(tmp_path)

    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10}
    ImpForPreTraining(ImpConfig(**tiny, num_experts=2, moe_layers="last:1")).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "loaded []", done.stderr[-3000:]
