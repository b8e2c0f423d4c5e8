"""The manifest of a corpus that was made: size and hash of every file, by which it is known to be whole."""

import hashlib
import json
from pathlib import Path

from imp_ds.errors import UserError

NAME = "manifest.json"
VERSION = 1
_FIRST = "digits"  # the kind that a manifest without one is of
_SHOWN = 5  # files that a message names before it counts


def write(root: Path, seed: int, scale: float, kind: str):
    """List every file below `root` in root/manifest.json."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    entries = {path.relative_to(root).as_posix(): [path.stat().st_size, _hash(path.read_bytes())] for path in files}
    own = {} if kind == _FIRST else {"corpus": kind}
    content = {"version": VERSION, **own, "seed": seed, "scale": scale, "files": entries}
    (root / NAME).write_text(json.dumps({**content, "hash": _hash(_canonical(content))}, indent=0))


def verify(root: str | Path, kind: str) -> dict:
    """Check the corpus file by file; returns the manifest.

    Raises UserError when there is no corpus of that kind in `root`, when its manifest is damaged, or when files are missing or
    damaged; the message names them.
    """
    root = Path(root)
    manifest = _read(root, kind)
    bad = [f"{name} ({wrong})" for name, entry in manifest["files"].items() if (wrong := _wrong(root / name, *entry))]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise UserError(f"the {kind} corpus in {root} is damaged", got=", ".join(bad[:_SHOWN]) + more, fix=_mend(root, kind))
    return manifest


def _read(root: Path, kind: str) -> dict:
    path = root / NAME
    try:
        manifest = json.loads(path.read_bytes())
        stored = manifest.pop("hash")
    except FileNotFoundError as error:
        fix = f"imp_ds corpus {kind} {root}"
        raise UserError(f"there is no {kind} corpus in {root}", got=f"no {NAME}", fix=fix) from error
    except OSError as error:
        raise UserError(f"the {kind} corpus in {root} cannot be read", got=f"{NAME}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        stored = manifest = None
    if manifest is None or stored != _hash(_canonical(manifest)):
        raise UserError(f"the {kind} corpus in {root} is damaged", got=f"{NAME} (not as it was written)", fix=_mend(root, kind))
    if (found := manifest.get("corpus", _FIRST)) != kind:
        got, allowed = f"the corpus {found}", f"the corpus {kind}"
        raise UserError(f"{root} holds another corpus", got=got, allowed=allowed, fix="name another folder")
    if manifest["version"] != VERSION:
        got, allowed = f"version {manifest['version']}", f"version {VERSION}"
        raise UserError(
            f"the {kind} corpus in {root} was made by another release", got=got, allowed=allowed, fix=_mend(root, kind)
        )
    return manifest


def _wrong(path: Path, size: int, digest: str) -> str | None:
    """What is wrong with a file, or None."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if len(content) != size:
        return f"{len(content)} bytes instead of {size}"
    return None if _hash(content) == digest else "other content than was written"


def _mend(root: Path, kind: str) -> str:
    return f"delete {root} and make it again: imp_ds corpus {kind} {root}"


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _canonical(content: dict) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
