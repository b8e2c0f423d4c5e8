"""What a recipe reads, and whether it is there: the sources of its tasks and evaluations, the models that its own is put together
from, its tokenizer, and the models of its stages. Nothing is trained, and no weights are read."""

from pathlib import Path

from imp_ds.commands.doctor.machine import Check
from imp_ds.config import RunConfig
from imp_ds.data.sources import open_reader
from imp_ds.errors import UserError
from imp_ds.evaluation.missing_splits import check_evaluations
from imp_ds.families import family_of
from imp_ds.modalities.text.tokenizers import load_tokenizer
from imp_ds.recipes import RECIPES
from imp_ds.stages import MODEL, StagedRun, model_folder
from imp_ds.train.stages.first_look import check_model

_CONFIG = "config.json"  # of an exported model: with it, the model is complete


def examine_run(run: RunConfig, stage: str | None = None, stages: Path | None = None) -> list[Check]:
    """All checks of a run: its data, its models, and its tokenizer where one is named.

    stage: of a recipe of several, whose name stands before. stages: the folder in which all of them are trained, whose models are
    not asked for here.
    """
    named = lambda what: what if stage is None else f"{stage}: {what}"  # noqa: E731
    found = [_data(named("data"), run), _models(named("models"), run, stages)]
    if (name := run.data.tokenizer) is not None:
        found.append(_read(named("tokenizer"), lambda: f"{name}: {len(load_tokenizer(name)):,} tokens"))
    return found


def examine_stages(staged: StagedRun, out: Path, recipe: str) -> Check:
    """Which stages of a recipe are trained in `out`, and which are left. recipe: as commands take it."""
    trained = [stage.name for stage in staged.stages if (model_folder(out, stage.name) / _CONFIG).is_file()]
    left = [stage.name for stage in staged.stages if stage.name not in trained]
    found = f"in {out}: {', '.join(trained) or 'none'}" + (f"; left: {', '.join(left)}" if left else "")
    go_on = f"imp_ds train {recipe}" + (" --resume auto" if trained else "")
    return Check("stages trained", "lacks" if left else "ok", found, go_on if left else "")


def missing_models(run: RunConfig, stages: Path | None = None) -> dict[str, str]:
    """{field: "FOLDER is not there, and how it is made"} of the models that a run names; those of `stages` left out."""
    missing = {}
    for field, folder in family_of(run).folders(run).items():
        if not Path(folder).is_dir() and (stages is None or stages not in Path(folder).parents):
            missing[field] = f"{folder} is not there" + (f": {how}" if (how := made_by(folder)) else "")
    return missing


def made_by(folder: str) -> str | None:
    """The commands that make the exported model in a folder, where it is named as those of the package's recipes are."""
    match Path(folder).parts:
        case ("runs", name, last) if name in RECIPES and last == MODEL:
            return f"imp_ds train {name}, then imp_ds export runs/{name} {folder}"
        case ("runs", name, _, last) if name in RECIPES and last == MODEL:
            return f"imp_ds train {name}"
    return None


def _data(name: str, run: RunConfig) -> Check:
    """Every distinct source, on the split that it is read on."""
    try:
        check_evaluations(run, "validation")
    except UserError as error:
        return Check(name, "broken", error.one_line)
    wanted = [(source, "train") for task in run.tasks for source in task.sources]
    wanted += [(record.source, "validation") for record in run.evaluations]
    rows = {"train": 0, "validation": 0}
    opened: set[str] = set()
    for source, split in wanted:
        key = split + source.model_dump_json(exclude={"weight", "captions_ignore", "fraction"})
        if key in opened:
            continue
        opened.add(key)
        try:
            rows[split] += len(open_reader(run.data.root, source, split, run.data))
        except UserError as error:
            return Check(name, "broken", error.one_line)
    counts = ", ".join(f"{count:,} rows of {split}" for split, count in rows.items() if count)
    return Check(name, "ok", f"{run.data.root}: {len(opened)} sources, {counts}")


def _models(name: str, run: RunConfig, stages: Path | None) -> Check:
    """What the model is put together from."""
    if missing := missing_models(run, stages):
        field, what = next(iter(missing.items()))
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        return Check(name, "broken", f"{field}: {what}{others}")
    folders = dict.fromkeys(family_of(run).folders(run).values())

    def described() -> str:
        return f"{check_model(run).model_type}" + (f", from {', '.join(folders)}" if folders else ", from fresh weights")

    return _read(name, described)


def _read(name: str, describe) -> Check:
    try:
        return Check(name, "ok", describe())
    except UserError as error:
        return Check(name, "broken", error.one_line)
