"""The names of a source's classes."""

from imp_ds.data.files.storage import Storage, place
from imp_ds.data.sources.splits import Wanted
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.modalities.media import shown
from imp_ds.tasks import Source
from imp_ds.terminal.printable import is_text


def class_names(wanted: Wanted, folder: str, found: list[str] | None = None) -> list[str] | None:
    """The class names in the order of the indices: those of `label_names`, else `found`, which the data themselves give.

    Args:
        folder: what a file name in `label_names` is relative to.

    Raises UserError for a file that does not list them, and for a name that stands twice.
    """
    source, names = wanted.source, wanted.source.label_names
    if isinstance(names, str):
        names = _read(wanted.storage, place(folder, names))
    names = found if names is None else names
    if names is not None and len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{source.path}: two classes have one name", got=", ".join(twice), fix="rename one in source.label_names")
    if names is not None and (foreign := [name for name in names if not is_text(name)]):
        raise UserError(f"{source.path}: a class name is not UTF-8", got=", ".join(foreign), fix="rename the folder or the class")
    return names


def _read(storage: Storage, address: str) -> list[str]:
    allowed = '["cat", "dog", ...]'
    try:
        with storage.open(storage.file(address)) as file:
            names = parse_json(file.read(), address, list, f"write {allowed} into it")
    except FileNotFoundError:
        raise UserError("the class names are not there", got=address, fix="set source.label_names") from None
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{address} does not list class names", got=shown(names), allowed=allowed)
    return names


def check_templates(source: Source, names: list[str] | None) -> None:
    """Raise UserError for templates, and turns with {}, without names; and for templates without a place for them."""
    named = ["templates"] if source.text is None and source.templates else []
    named += ["turns"] if any("{}" in template for turn in source.turns for template in turn) else []
    for field in named if source.label is None or names is None else []:
        lacks = "source.label names no column" if source.label is None else "there are no class names"
        fix = "set source.label, and source.label_names to the names"
        raise UserError(f"{source.path}: source.{field} cannot be filled", got=lacks, fix=fix)
    without = [template for template in source.templates if "templates" in named and "{}" not in template]
    if without:
        what = f"{source.path}: a template has no place for the class name"
        raise UserError(what, got=without[0], allowed='"a photo of a {}."')
