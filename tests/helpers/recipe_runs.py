"""The runs of all recipes of the package, those of stages too, for tests that ask the same of each."""

from pathlib import Path

from imp_ds.config import RunConfig
from imp_ds.recipes import RECIPES, get_recipe
from imp_ds.stages import StagedRun


def run_names() -> list[str]:
    """Such as "digits", and of a recipe of several stages "talk_debug/image" and so on."""
    found = []
    for name in RECIPES:
        recipe = get_recipe(name)
        found += [f"{name}/{stage.name}" for stage in recipe.stages] if isinstance(recipe, StagedRun) else [name]
    return found


def standalone_names() -> list[str]:
    """Those of `run_names` that read no other run's model: those of `talk` take their towers from the quickstart."""
    return [name for name in run_names() if name == "talk/language" or not name.startswith(("talk/", "talk_joint"))]


def run_named(name: str) -> RunConfig:
    """That run; models of stages before it are not there."""
    recipe, _, stage = name.partition("/")
    found = get_recipe(recipe)
    return found.planned(stage, Path("no/stages/here")) if stage else found
