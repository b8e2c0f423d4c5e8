"""Which checkpoint a run goes on from: what `--resume` means.

    auto     the newest complete one, or the start when the run has none: for a job that may be restarted at any time
    latest   the newest complete one; there must be one
    STEP     the one of that step; there must be none of a later step
"""

from collections.abc import Callable
from pathlib import Path

from imp_ds.errors import UserError
from imp_ds.train import checkpoint

ALLOWED = "auto, latest or the number of a step"


def find(output_dir: Path, resume: str, warn: Callable[[str], None] = print) -> Path | None:
    """The folder of the checkpoint to go on from, verified; None to start from step 0.

    A damaged checkpoint is named through `warn` and the one before it is taken, but a run of which no checkpoint is complete
    is never started anew. Raises UserError then, and for a checkpoint that is not there.
    """
    steps = checkpoint.steps(output_dir)
    if resume.isdecimal():
        return _of_step(output_dir, int(resume), steps)
    if resume not in ("auto", "latest"):
        raise UserError("--resume is not understood", got=repr(resume), allowed=ALLOWED)
    if resume == "auto" and not steps:
        return None
    folder = checkpoint.newest(output_dir, warn)
    if folder is None:
        raise UserError(
            "there is no complete checkpoint to resume from", got=f"{Path(output_dir) / checkpoint.FOLDER}: {_listed(steps)}",
            fix="move that folder away, and --resume auto starts from step 0" if steps else "--resume auto, or no --resume",
        )  # fmt: skip
    return folder


def _of_step(output_dir: Path, step: int, steps: list[int]) -> Path:
    """One step's checkpoint. Later ones would be taken for this run's own when it is resumed again, so they have to go."""
    root = Path(output_dir) / checkpoint.FOLDER
    if step not in steps:
        raise UserError("there is no checkpoint of that step", got=step, allowed=_listed(steps))
    if later := [one for one in steps if one > step]:
        aside = f"{root}.after_{step}"
        moves = " ".join(str(root / checkpoint.folder_name(one)) for one in later)
        raise UserError(
            f"there are checkpoints of later steps than {step}, which the run would go on from next time", got=_listed(later),
            fix=f"mkdir {aside} && mv {moves} {aside}",
        )  # fmt: skip
    folder = root / checkpoint.folder_name(step)
    checkpoint.verify(folder)
    return folder


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if steps else "none"
