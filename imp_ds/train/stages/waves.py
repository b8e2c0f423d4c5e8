"""Which stages are to be trained, in which order, and which of them beside each other; what stands in the way is said first."""

from pathlib import Path

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.stages import StagedRun, model_folder
from imp_ds.train.run_folder import differences
from imp_ds.train.run_lock import FILE as LOCK
from imp_ds.train.stages.job import Job

_CONFIG = "config.json"  # of an exported model: with it, the stage is finished


def is_finished(staged: StagedRun, name: str, out: Path) -> bool:
    """Whether the stage was trained and exported in `out`. Raises UserError where it was, but otherwise than it says now."""
    folder = model_folder(out, name)
    if not (folder / _CONFIG).is_file():
        return False
    before, now = RunConfig.load(folder / FILE_NAME), staged.run_of(name, out)
    # what a task's objectives leave open the data have said
    changed = [line for path, line in differences(before, now).items() if path.split(".")[2:3] != ["objectives"]]
    if before.train.steps != now.train.steps:
        changed.append(f"train.steps: {before.train.steps} -> {now.train.steps}")
    if changed:
        raise UserError(
            f"stage {name} is finished, and was trained differently",
            got="; ".join(changed[:5]) + (f" and {len(changed) - 5} more" if changed[5:] else ""),
            fix=f"the recipe and the --set of that run; or move {folder.parent} away, and what was trained after it",
        )  # fmt: skip
    return True


def to_train(staged: StagedRun, out: Path, chosen: str | None, resume: str | None) -> tuple[list[Job], list[str]]:
    """The jobs that are left, in the order of the stages, and the names of the stages that are finished.

    chosen: train this stage alone; None: all. resume: of `--resume`. Raises UserError for an output folder that is not of this
    recipe, a stage that one that is chosen needs and that is not finished, and a step without a stage.
    """
    if chosen is None:
        _check_folder(staged, out, resume)
        finished = [stage.name for stage in staged.stages if resume is not None and is_finished(staged, stage.name, out)]
        left = [stage.name for stage in staged.stages if stage.name not in finished]
        # only the first of them may have begun already
        return [Job(name, resume if place == 0 else resume and "auto") for place, name in enumerate(left)], finished
    for name in staged.needed(chosen):
        if not is_finished(staged, name, out):
            raise UserError(
                f"stage {chosen} starts from the model of stage {name}, which is not finished",
                got=f"{model_folder(out, name)} is not there",
                fix=f"--stage {name} first; or no --stage, which trains all that is left, with --resume auto if it has begun",
            )  # fmt: skip
    if resume is not None and is_finished(staged, chosen, out):
        return [], [chosen]
    return [Job(chosen, resume)], []


def _check_folder(staged: StagedRun, out: Path, resume: str | None) -> None:
    """Raise UserError for a folder that holds something else than stages of this recipe, or them and nothing is resumed."""
    if resume is not None and resume.isdecimal():
        raise UserError("--resume STEP is of one stage", got=resume, fix="--stage NAME, or --resume auto")
    if out.exists() and not out.is_dir():
        raise UserError("the output folder is a file", got=out, allowed="a new or empty folder", fix="--output_dir DIR")
    there = {path.name for path in out.iterdir()} - {LOCK} if out.is_dir() else set()
    stages = {stage.name for stage in staged.stages}
    if there & stages and resume is None:
        raise UserError(
            "the output folder holds stages already", got=f"{out}: {', '.join(sorted(there & stages))}",
            allowed="a new or empty folder", fix="--output_dir DIR for a new run, or --resume auto to go on with this one",
        )  # fmt: skip
    if there and not there & stages:
        raise UserError("the output folder is not empty", got=out, allowed="a new or empty folder", fix="--output_dir DIR")


def waves(staged: StagedRun, jobs: list[Job], world: int, side_by_side: bool) -> list[list[Job]]:
    """The jobs in the order of their training; those of one list are trained at the same time, each by an equal part of the
    ranks.

    Raises UserError where no two stages of the recipe can be trained side by side, and are to be.
    """
    if not side_by_side:
        return [[job] for job in jobs]
    if world < 2:
        raise UserError("stages train side by side on two ranks or more", got=f"{world} rank", fix="no --side_by_side")
    left, found = list(jobs), []
    while left:
        waiting = {job.stage for job in left}
        ready = [job for job in left if not waiting & set(staged.needed(job.stage))]
        parts = max(number for number in range(1, min(len(ready), world) + 1) if world % number == 0)
        found.append([job._replace(alone=parts == 1) for job in ready[:parts]])
        left = [job for job in left if job.stage not in {one.stage for one in found[-1]}]
    if len(jobs) == len(staged.stages) and all(len(wave) == 1 for wave in found):  # else those that can be may be finished
        raise UserError(
            "no two of the stages can be trained side by side",
            got=f"{', '.join(job.stage for job in jobs)} on {world} ranks",
            allowed="stages that do not need each other, and ranks that can be cut into equal parts", fix="no --side_by_side",
        )  # fmt: skip
    return found
