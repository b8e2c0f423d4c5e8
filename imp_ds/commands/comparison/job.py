"""A run of a comparison: how it is trained by the project's own command, how far it is, and whose its folder is."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from imp_ds import foreign_code
from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.recipes import get_recipe
from imp_ds.train.run_folder import RESULTS

AGAIN = "delete the file, and give the same command again"
_SHOWN = 3  # differences that a message names


@dataclass(frozen=True)
class Job:
    """One variant from one seed: a recipe with settings, "path=value", trained in `folder`, the run's output folder."""

    variant: str
    seed: int
    folder: Path
    recipe: str
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.variant}_{self.seed}"

    @property
    def log(self) -> Path:
        """What its commands print; not in the run's folder, which must be new."""
        return self.folder.parent.parent / "logs" / f"{self.name}.log"

    @property
    def steps(self) -> int:
        """Of training, in all."""
        return self.run().train.steps

    def run(self) -> RunConfig:
        """Raises UserError for a setting that cannot be."""
        return get_recipe(self.recipe).override(list(self.settings))

    def command(self) -> list[str] | None:
        """What is to be done next; None: the job is done. What a killed command left is gone on with."""
        if (self.folder / RESULTS).is_file():
            return None
        changes = [f"--set={setting}" for setting in self.settings]
        where = ["--output_dir", str(self.folder), "--resume", "auto"]
        return [sys.executable, "-m", "imp_ds", "train", self.recipe, *changes, *where, *foreign_code.options()]

    def steps_done(self) -> int:
        """As far as the run has reported; it reports now and then."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return max((parse_json(line, "metrics.jsonl", dict).get("step", 0) for line in lines), default=0)
        except (OSError, ValueError, TypeError):  # not there yet, or just being written
            return 0

    def changed(self) -> list[str]:
        """What of the run in the folder is not as it is asked for."""
        return differences(RunConfig.load(self.folder).model_dump(mode="json"), self.run().model_dump(mode="json"))

    def is_begun(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / FILE_NAME).is_file()

    def check(self) -> None:
        """Raise UserError when the folder holds a run that was started differently."""
        if self.is_begun() and (changed := self.changed()):
            raise UserError(
                "the output folder holds another comparison",
                got=f"{self.folder}: " + "; ".join(changed[:_SHOWN]) + (" ..." if changed[_SHOWN:] else ""),
                allowed="to go on with a comparison, the data, steps and settings that it was begun with",
                fix="give those, or take another folder",
            )  # fmt: skip


def differences(before: object, now: object, path: str = "") -> list[str]:
    """What two configurations do not share, as "path: before -> now"."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{path}.{key}".strip("."), before.get(key), now.get(key)) for key in (before | now)]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{path}.{number}", *pair) for number, pair in enumerate(zip(before, now))]
    else:
        return [] if before == now else [f"{path}: {json.dumps(before)} -> {json.dumps(now)}"]
    return [found for key, old, new in pairs for found in differences(old, new, key)]
