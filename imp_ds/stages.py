"""A recipe of several stages: runs that are trained one after another, each of which may start from the models of earlier ones.

    StagedRun(name="mine", stages=[Stage(name="language", run=RunConfig(...)), Stage(name="image", run=RunConfig(...))])

Where a run names the folder of a model, "stage:language" is the exported model of the stage `language` of the same recipe: in any
field of `model`, in `data.tokenizer` and in `train.init_from`. It lies in the output folder, beside the run that it is of:

    OUT/language/          the run of the stage, as any other
    OUT/language/model/    its exported model: there when the stage is finished, complete or absent
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field, model_validator

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.overrides import nearest, parse_record
from imp_ds.records import Record

PREFIX = "stage:"
MODEL = "model"  # the folder of a stage's exported model, in that of its run
EVERY = "*"  # before a key of --set: of every stage


class Stage(Record):
    """One run of a recipe of several."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60,
        description="of the stage: its run's folder in OUT, what stands before a key of --set, and behind stage:",
    )  # fmt: skip
    run: RunConfig = Field(description="what is trained")


class StagedRun(Record):
    """Runs that are trained one after another. A run may name the model of an earlier stage as "stage:NAME"."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100, description="of all; its folder is runs/NAME")
    stages: list[Stage] = Field(min_length=1, description="in the order in which they are trained")

    @model_validator(mode="after")
    def _is_in_order(self):
        names = [stage.name for stage in self.stages]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError("two stages have one name", got=", ".join(twice), fix="their folders have it too: rename one")
        for place, stage in enumerate(self.stages):
            for path, name in references(stage.run):
                if name not in names[:place]:
                    raise UserError(
                        f"stage {stage.name}: {path} names no earlier stage", got=f"{PREFIX}{name}",
                        allowed=", ".join(f"{PREFIX}{earlier}" for earlier in names[:place]) or "none: this is the first stage",
                    )  # fmt: skip
        return self

    def stage(self, name: str) -> Stage:
        """The stage of that name; UserError when there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError("unknown stage", got=name, allowed=nearest(name, [stage.name for stage in self.stages]))

    def needed(self, name: str) -> list[str]:
        """The stages whose models the stage starts from, in their order."""
        found = {needed for _, needed in references(self.stage(name).run)}
        return [stage.name for stage in self.stages if stage.name in found]

    def run_of(self, name: str, out: Path) -> RunConfig:
        """The run of a stage, with the folders of the models in `out` that it starts from."""
        return _replaced(self.stage(name).run, lambda path, needed: str(model_folder(out, needed)))

    def planned(self, name: str, out: Path) -> RunConfig:
        """`run_of`, for what only looks at a run: in place of a model that is not there yet stands what it is made from, and what
        it would only give weights to stands alone."""

        def instead(path: str, needed: str):
            folder = model_folder(out, needed)
            if folder.is_dir() or path.startswith("model.experts."):
                return str(folder)
            earlier = self.planned(needed, out)
            if path == "data.tokenizer":
                return earlier.data.tokenizer
            if path == "train.init_from" or path.endswith(".start_from"):
                return None
            return getattr(earlier.model, path.removeprefix("model."), str(folder))

        return _replaced(self.stage(name).run, instead)

    def override(self, overrides: list[str]) -> "StagedRun":
        """A copy with each "STAGE.path=value" set in the run of that stage, "*.path=value" in all of them. Raises UserError."""
        runs = {stage.name: stage.run for stage in self.stages}
        for override in overrides:
            name, dot, setting = override.partition(".")
            if not dot or "=" in name or name not in (*runs, EVERY):
                raise UserError(
                    "--set names no stage of the recipe", got=override, allowed=nearest(name.partition("=")[0], [*runs, EVERY]),
                    fix=f"write for example --set {next(iter(runs))}.train.steps=100, or --set '*.data.root=DIR' for every stage",
                )  # fmt: skip
            for stage in runs if name == EVERY else [name]:
                runs[stage] = _set(stage, runs[stage], setting)
        stages = [{"name": name, "run": run.model_dump()} for name, run in runs.items()]
        return parse_record(StagedRun, {"name": self.name, "stages": stages}, "--set")


def model_folder(out: Path, stage: str) -> Path:
    """Where the exported model of a stage lies, when all of them are trained in `out`."""
    return Path(out) / stage / MODEL


def default_folder(staged: StagedRun) -> Path:
    """Where the stages are trained when no other folder is named."""
    return Path("runs") / staged.name


def references(run: RunConfig) -> list[tuple[str, str]]:
    """(path of a field, name of a stage) of each "stage:NAME" in a run, in the order of the fields."""
    return [(path, value.removeprefix(PREFIX)) for path, value, _, _ in _folders(run.model_dump()) if value.startswith(PREFIX)]


def _set(stage: str, run: RunConfig, setting: str) -> RunConfig:
    try:
        return run.override([setting])
    except UserError as error:
        raise UserError(f"stage {stage}: {error}") from None


def _replaced(run: RunConfig, instead: Callable[[str, str], object]) -> RunConfig:
    data = run.model_dump()
    for path, value, owner, key in _folders(data):
        if value.startswith(PREFIX):
            owner[key] = instead(path, value.removeprefix(PREFIX))
    return RunConfig.model_validate(data)


def _folders(data: dict) -> Iterator[tuple[str, str, dict, str]]:
    """(path, text, what holds it, its key there) of what may be the folder of a model in a run's dump."""
    yield from _texts(data["model"], "model")
    for part, key in (("data", "tokenizer"), ("train", "init_from")):
        if data[part][key] is not None:
            yield f"{part}.{key}", data[part][key], data[part], key


def _texts(node: dict, path: str) -> Iterator[tuple[str, str, dict, str]]:
    for key, value in list(node.items()):
        if isinstance(value, str):
            yield f"{path}.{key}", value, node, key
        elif isinstance(value, dict):
            yield from _texts(value, f"{path}.{key}")
