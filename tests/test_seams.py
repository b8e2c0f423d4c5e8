"""How many files an addition touches: nothing outside of a seam's own room names what is behind it."""

import ast
import re
from pathlib import Path

from helpers.source_tree import PACKAGE, text_of, tree_of
from imp_ds.evaluation import Evaluator
from imp_ds.families import FAMILIES
from imp_ds.moe.routers.registry import ROUTERS
from imp_ds.objectives.registry import OBJECTIVES
from imp_ds.registry import EVALUATORS, FORMATS, MODALITIES

KINDS = "zero_shot|retrieval|captioning|masked_language|heads|tuned|answers"
METRIC = re.compile(rf"(^|[^\w])({KINDS})/|/(top\d|R@|bleu4|cider|perplexity)|^left_out/")


def compared_constants(tree: ast.AST, attribute: str) -> list[str]:
    """The strings that a `.attribute` or an ["attribute"] is compared with, by ==, !=, in or not in."""
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Compare)):
        sides = [node.left, *node.comparators]
        if any(_is(side, attribute) for side in sides):
            found += [c.value for side in sides for c in ast.walk(side) if isinstance(c, ast.Constant) and c.value != attribute]
    return found


def code(path: Path) -> ast.AST:
    """A module without its docstrings and the descriptions of fields."""
    tree = ast.parse(text_of(path))
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))]
        if isinstance(node, ast.Call):
            node.keywords = [word for word in node.keywords if word.arg != "description"]
    return tree


def _is(node: ast.AST, attribute: str) -> bool:
    key = getattr(node, "slice", None)
    return getattr(node, "attr", None) == attribute or isinstance(key, ast.Constant) and key.value == attribute


def modules_outside(room: str) -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != room]


def test_the_check_sees_both_spellings():
    tree = ast.parse('a.kind == "contrastive" or b["kind"] in ("captioning", "likelihood") or c.kind != d')
    assert compared_constants(tree, "kind") == ["contrastive", "captioning", "likelihood"]


def test_no_module_outside_of_objectives_branches_on_a_kind():
    outside = modules_outside("objectives")
    compared = {path: set(compared_constants(tree_of(path), "kind")) & OBJECTIVES.keys() for path in outside}
    assert {str(path): names for path, names in compared.items() if names} == {}


def test_each_objective_is_one_file_and_its_line():
    """Beside its module a record class is named by what makes tasks (recipes, tune) and by the lists of what may be imported."""
    makers = {"__init__.py", "objectives/__init__.py", "commands/tuning.py"}
    for record in OBJECTIVES.values():
        home = record.__module__.removeprefix("imp_ds.").replace(".", "/") + ".py"
        named = set()
        for path in PACKAGE.rglob("*.py"):
            names = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
            if record.__name__ in names:
                named.add(path.relative_to(PACKAGE).as_posix())
        assert {name for name in named - makers if not name.startswith(("recipes/", "objectives/"))} == set(), home


def test_no_module_branches_on_a_format_and_each_is_one_file_and_its_line():
    for path in PACKAGE.rglob("*.py"):
        assert not set(compared_constants(tree_of(path), "format")) & set(FORMATS.homes), path
    for kind, home in FORMATS.homes.items():
        assert FORMATS[kind].__module__ == home


def test_each_evaluator_is_one_file_and_its_line_and_no_reader_knows_a_metric_by_name():
    """What is measured is named by evaluators, and by the study that compares routers of one recipe on metrics that it chose."""
    for kind, home in EVALUATORS.homes.items():
        assert EVALUATORS[kind].__module__ == home and issubclass(EVALUATORS[kind], Evaluator)
    makers = {home.removeprefix("imp_ds.").replace(".", "/") + ".py" for home in EVALUATORS.homes.values()}
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        texts = [node.value for node in ast.walk(code(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found[name] = [text for text in texts if METRIC.search(text)]
    named = {name for name, texts in found.items() if texts and not name.startswith("commands/comparison/")}
    assert named <= makers | {"evaluation/retrieval.py"}, {name: found[name] for name in named}


def test_the_check_of_metrics_sees_them():
    assert all(METRIC.search(text) for text in ("zero_shot/", "/top1", "retrieval/x/R@1", "/perplexity", "left_out/"))


def test_no_module_outside_of_moe_branches_on_a_router():
    compared = {path: set(compared_constants(tree_of(path), "router")) & set(ROUTERS.homes) for path in modules_outside("moe")}
    assert {str(path): names for path, names in compared.items() if names} == {}


def test_each_router_is_one_file_and_its_line():
    for kind, home in ROUTERS.homes.items():
        router = ROUTERS[kind]
        assert router.__module__ == home and router.kind == kind
        source = {path: text_of(path) for path in PACKAGE.rglob("*.py")}
        named = {path.relative_to(PACKAGE).as_posix() for path, text in source.items() if f'"{kind}"' in text}
        assert {name for name in named if not name.startswith(("moe/", "recipes/"))} == set(), kind
        classes = {path.relative_to(PACKAGE).parts[0] for path, text in source.items() if router.__name__ in text}
        assert classes == {"moe"}


def test_no_module_outside_of_the_rooms_of_models_names_a_model():
    """models/, families/ and objectives/ alone import the classes of a model; the table of names imports nothing."""
    named = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        if room in ("models", "families", "objectives"):
            continue
        for node in ast.walk(tree_of(path)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named |= {str(path): module for module in modules if module.startswith("imp_ds.models")}
    assert named == {}


def test_each_family_is_one_package_and_its_line():
    """Nothing that serves all families imports one of them, nor branches on its name: recipes and commands of IMP alone do, and
    the measurement of its kernels."""
    own = ("recipes/", "commands/tun", "commands/upcycle", "commands/comparison/", "planning/measure/kernels")
    for kind, home in FAMILIES.homes.items():
        package, family = home.rpartition(".")[0], FAMILIES[kind]
        assert family.__module__ == home and family.Settings.model_fields["family"].default == kind
        for path in modules_outside("families"):
            name = path.relative_to(PACKAGE).as_posix()
            imports = {node.module for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom) and node.module}
            if not name.startswith(own):
                assert not any(f"{module}.".startswith(f"{package}.") for module in imports), name
            assert kind not in compared_constants(tree_of(path), "family"), name


def test_each_modality_is_one_file_or_package_and_its_line():
    """Outside of its room and the recipes a modality is named by nothing but the registry, and no list of modalities stands
    anywhere else. Towers of Uni-MoE have the ecosystem's names; ImpConfig's default pairs are the published ones;
    ImpModel's `input_modalities` are in transformers' words."""
    free = {"imp_ds/registry.py", "imp_ds/models/imp/configuration_imp.py", "imp_ds/models/imp/modeling_imp.py"}
    for path in modules_outside("modalities"):
        name = path.relative_to(PACKAGE.parent).as_posix()
        if name in free or name.startswith(("imp_ds/recipes/", "imp_ds/data/digits/", "imp_ds/models/uni_moe/")):
            continue
        tree = code(path)
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert "sensors" not in constants, name
        for node in (
            node for node in ast.walk(tree) if isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Subscript))
        ):
            items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            listed = {item.value for item in items if isinstance(item, ast.Constant)} & set(MODALITIES)
            assert len(listed) < 2, (name, node.lineno, listed)


def test_the_records_of_tasks_and_runs_name_nothing_behind_a_seam():
    names = {*OBJECTIVES, *MODALITIES, *ROUTERS}
    for file in ("tasks.py", "config.py"):
        constants = {node.value for node in ast.walk(code(PACKAGE / file)) if isinstance(node, ast.Constant)}
        assert not constants & names, file
