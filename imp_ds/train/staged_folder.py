"""A folder of a model that is whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imp_ds.errors import UserError


@contextmanager
def staged_folder(out: Path, what: str) -> Iterator[Path]:
    """A folder beside `out` to write `what` into; it takes the name of `out` when all is done, and is gone after an error.

    Raises UserError when `out` is neither new nor an empty folder, at once, and when it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"the folder of the {what} is not empty", got=out, allowed="a new or empty folder")
    staging = out.parent / f".staging-{out.name}-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        yield staging
        if out.is_dir():
            out.rmdir()
        staging.rename(out)
    except OSError as error:
        raise UserError(f"the {what} cannot be written", got=f"{out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
