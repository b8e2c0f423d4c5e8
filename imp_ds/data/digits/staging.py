"""A corpus that is made: in a staging folder beside its place, renamed when it is complete, and known by its manifest."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from imp_ds.data.digits import manifest
from imp_ds.errors import UserError

Progress = Callable[[str, int, int], None]
Write = Callable[[Path, int, float, Progress], None]


class MadeCorpus(NamedTuple):
    """A corpus that `imp_ds corpus KIND OUT` makes."""

    kind: str

    def build(self, out: str | Path, seed: int, scale: float, write: Write, progress: Progress | None = None) -> bool:
        """Make the corpus in the folder `out`; True when it was made, False when it was found there, complete.

        The same seed and scale give the same bytes.

        Args:
            scale: above 0, at most 1: the share of the samples that is made, at least one for each class and split.
            write: called with (staging folder, seed, scale, progress); it writes all but the manifest.
            progress: called with (stage, samples done, samples in all).

        Raises UserError when `scale` or `seed` is out of range, when `out` holds anything else, a corpus of another seed or
        scale, or a damaged one (it names the files), and when it cannot be written. `out` is then as it was.
        """
        out = Path(out).resolve()  # "." has neither a name nor a parent, and a link cannot be replaced by a folder
        if not 0 < scale <= 1:
            raise UserError("the scale of the corpus is out of range", got=scale, allowed="above 0, at most 1")
        if seed < 0:
            raise UserError("the seed of the corpus is out of range", got=seed, allowed="0, 1, 2, ...")
        if self._found(out, seed, scale):
            return False
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as private:
                staging = Path(private) / out.name
                write(staging, seed, scale, progress or (lambda stage, done, total: None))
                manifest.write(staging, seed, scale, self.kind)
                return self._move(staging, out, seed, scale)
        except OSError as error:
            raise self._unwritable(out, error) from error

    def verify(self, root: str | Path) -> dict:
        """Check the corpus file by file; returns the manifest. Raises UserError as `manifest.verify` does."""
        return manifest.verify(root, self.kind)

    def _found(self, out: Path, seed: int, scale: float) -> bool:
        """Is the corpus there already? False when `out` is free. Raises UserError when something else is in the way."""
        own_folder = f"the {self.kind} corpus needs a folder of its own"
        try:
            if out.exists() and not out.is_dir():
                raise UserError(own_folder, got=f"{out} is a file", fix="name another folder")
            if not out.exists() or not any(out.iterdir()):
                return False
            if not (out / manifest.NAME).exists():
                some = ", ".join(sorted(path.name for path in out.iterdir())[:3])
                raise UserError(own_folder, got=f"{out} holds {some}", fix="name a new or empty folder")
        except OSError as error:
            raise self._unwritable(out, error) from error
        there = self.verify(out)
        if (there["seed"], there["scale"]) != (seed, scale):
            got, allowed = f"seed {there['seed']}, scale {there['scale']}", f"seed {seed}, scale {scale}, as asked"
            fix = f"name another folder, or delete {out}"
            raise UserError(f"{out} holds another {self.kind} corpus", got=got, allowed=allowed, fix=fix)
        return True

    def _unwritable(self, out: Path, error: OSError) -> UserError:
        fix = "name a folder that can be written"
        return UserError(f"the {self.kind} corpus cannot be written to {out}", got=error, fix=fix)

    def _move(self, staging: Path, out: Path, seed: int, scale: float) -> bool:
        try:
            staging.rename(out)
        except OSError:
            # Somebody else may have finished the same corpus in the meantime.
            if not self._found(out, seed, scale):
                raise
            return False
        return True
