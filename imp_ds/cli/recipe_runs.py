"""The runs that a command works on: that of a recipe, or those of its stages, with the changes of --set."""

from pathlib import Path

from imp_ds import recipes
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.stages import StagedRun, default_folder


def whole_recipe(recipe: str, stage: str | None, settings: list[str]) -> RunConfig | StagedRun:
    """The recipe as it stands; of several stages, where one is named, the run of that one. Raises UserError."""
    found = recipes.get_recipe(recipe).override(settings)
    if stage is None:
        return found
    if not isinstance(found, StagedRun):
        raise UserError("the recipe has no stages", got=f"--stage {stage}", fix="no --stage")
    return _planned(found, stage)


def one_run(recipe: str, stage: str | None, settings: list[str] = []) -> RunConfig:
    """The one run of a recipe, or of the stage of it that is named. Raises UserError where none is and there are several."""
    found = whole_recipe(recipe, stage, settings)
    if isinstance(found, StagedRun):
        names = ", ".join(one.name for one in found.stages)
        raise UserError(f"{recipe} is a recipe of several stages", got="no --stage", allowed=f"--stage NAME of {names}")
    return found


def started_run(recipe: str, stage: str | None, folder: Path | None) -> RunConfig:
    """The one run of a recipe, or of a stage of it as it is trained: with the models of the stages before it, which lie in
    `folder`; None: in the recipe's own. Raises UserError."""
    found = recipes.get_recipe(recipe)
    if stage is None or not isinstance(found, StagedRun):
        return one_run(recipe, stage)
    return found.run_of(stage, folder or default_folder(found))


def other_run(recipe: str | None, stage: str | None) -> RunConfig | None:
    """The one run of --recipe, where that is given. Raises UserError for a stage without a recipe."""
    if recipe is not None:
        return one_run(recipe, stage)
    if stage is not None:
        raise UserError("--stage is of a recipe", got=f"--stage {stage}", fix="--recipe RECIPE --stage NAME, or neither")
    return None


def each_run(recipe: str, stage: str | None, settings: list[str]) -> dict[str | None, RunConfig]:
    """The runs of all stages by their names, or of the one that is named; of another recipe its own, under None."""
    found = whole_recipe(recipe, stage, settings)
    if isinstance(found, StagedRun):
        return {one.name: _planned(found, one.name) for one in found.stages}
    return {stage: found}


def _planned(staged: StagedRun, stage: str) -> RunConfig:
    return staged.planned(stage, default_folder(staged))
