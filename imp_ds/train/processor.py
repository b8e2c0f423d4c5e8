"""The processor of a run: made once from the run's configuration and corpus, and saved beside the run."""

import hashlib
from pathlib import Path

from transformers import ProcessorMixin

from imp_ds import foreign_code
from imp_ds.config import RunConfig
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.parallel.groups import on_main
from imp_ds.train.staged_folder import staged_folder

FOLDER = "processor"
_RESTORE = "restore the files of the run's processor, or start a new run"


def init_processor(run: RunConfig, readers: dict[str, list[Reader]], output_dir: Path, state: dict | None) -> ProcessorMixin:
    """The run's processor: rank 0 makes and saves it if the run has none yet, and every rank loads it.

    state: of the checkpoint that the run goes on from, with which the processor has to agree; None: the run begins.
    """
    folder = output_dir / FOLDER

    def make():
        if not folder.exists():
            with staged_folder(folder, "processor") as staging:
                family_of(run).processor(run, readers).save_pretrained(staging)

    on_main(make, "the processor could not be saved")
    return on_main(lambda: load_processor(run, output_dir, state), "the processor cannot be loaded", every_rank=True)


def load_processor(run: RunConfig, output_dir: Path, state: dict | None = None) -> ProcessorMixin:
    """The processor of a run. Raises UserError where it is missing or damaged, or is not the one that the checkpoint of `state`
    was trained with."""
    folder = output_dir / FOLDER
    if state is not None:
        if "processor" not in state:
            raise UserError("the checkpoint does not say what its processor was", got=f"step {state.get('step')}", fix=_RESTORE)
        _verify(folder, state["processor"])
    return foreign_code.load(
        family_of(run).Processor, folder, "the processor of the run cannot be loaded", fix=_RESTORE, local_files_only=True
    )


def hashes(output_dir: Path) -> dict[str, str]:
    """SHA-256 of each file of a run's processor, by its name: what a checkpoint keeps of it."""
    files = sorted(path for path in (output_dir / FOLDER).rglob("*") if path.is_file())
    return {str(path.relative_to(output_dir / FOLDER)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _verify(folder: Path, expected: dict[str, str]) -> None:
    found = hashes(folder.parent)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            what = "is missing" if name not in found else "is new" if name not in expected else "was changed"
            raise UserError(
                "the processor is not the one that the checkpoint was trained with", got=f"{folder / name} {what}", fix=_RESTORE
            )
