"""A folder of a model that is complete or absent."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imp_ds.errors import UserError

# how what is written in Rust (safetensors, tokenizers) reports that the system refused to write
_OF_THE_SYSTEM = re.compile(r"\(os error \d+\)|No space left|File too large|Disk quota")


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
    except UserError:
        raise
    except Exception as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        if not isinstance(error, OSError) and not _OF_THE_SYSTEM.search(str(error)):
            raise
        raise UserError(
            f"the {what} cannot be written", got=f"{out}: {reason}", fix="make room there, or name another folder"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
