"""The code that an exported folder carries, so that `trust_remote_code=True` loads it where imp_ds is not installed.

transformers copies a file that `auto_map` names and, from the same folder, the files that lines `from .NAME import` name. So the
modules that the model's classes import, from models/ downwards, are written flat into one folder, `imp_ds.moe.layer` as
moe_layer.py, with their imports of each other rewritten, and those that are imported by a name in a string too. They stay as they
are otherwise. Packages that need not be installed there are asked for when they are used.
"""

import ast
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

import imp_ds
from imp_ds.errors import UserError

FOLDER = "imp_ds_code"
ENTRY = "exported"
ROOT = Path(imp_ds.__file__).parent
# what a model may import of this package, and what torch and transformers bring with them
CARRIED = {
    "errors", "records", "registry", "overrides", "foreign_code", "randomness", "costs", "json_files", "written_files",
    "terminal", "modalities", "moe", "models",
}  # fmt: skip
INSTALLED = {
    "torch", "transformers", "numpy", "safetensors", "tokenizers", "huggingface_hub", "tqdm", "packaging", "regex", "yaml",
    "jinja2", "filelock", "typing_extensions", "pydantic",
}  # fmt: skip
_ABSENT = {"PIL": "pillow"}  # module -> as pip calls it: imported at the head of files, used for pictures alone
_PARTS = {
    "image_processor": "AutoImageProcessor", "video_processor": "AutoVideoProcessor", "feature_extractor": "AutoFeatureExtractor",
}  # fmt: skip
_HINTS = "imported by name; transformers takes along what such lines name"
_NAMES = "imp_ds.errors"


def write_code(folder: Path, classes: dict[str, type]) -> None:
    """Write the modules of these classes, by the Auto classes that load them, and all that they need, into `folder`/FOLDER, and
    name the classes in the folder's config.json and processor_config.json. Nothing is written where there are no classes.

    Raises UserError for a module that imports of imp_ds what a model cannot take along.
    """
    if not classes:
        return
    homes = {kind.__name__: kind.__module__ for kind in classes.values()}
    files = carried(set(homes.values()))
    lines = [f"from .{flat(home)} import {name}" for name, home in homes.items()]
    head = f'"""{", ".join(homes)}, with the code that they need, as `imp_ds export` wrote it."""\n\n'
    files[ENTRY] = head + "\n".join(lines) + f"\n\n__all__ = {sorted(homes)}\n"
    (folder / FOLDER).mkdir()
    for name, text in sorted(files.items()):
        (folder / FOLDER / f"{name}.py").write_text(text, encoding="utf-8")
    named = {auto: f"{FOLDER}/{ENTRY}.{kind.__name__}" for auto, kind in classes.items()}
    _name_classes(folder / "config.json", named)
    _name_classes(folder / "processor_config.json", {"AutoProcessor": named["AutoProcessor"]}, named)


def _name_classes(path: Path, named: dict[str, str], parts: dict[str, str] | None = None) -> None:
    """Put an auto_map into a JSON file, and, of `parts`, into those of a processor that it holds."""
    found = json.loads(path.read_text(encoding="utf-8"))
    for part, auto in _PARTS.items():
        if parts and auto in parts and isinstance(found.get(part), dict):
            found[part]["auto_map"] = {auto: parts[auto]}
    found["auto_map"] = named
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def carried(modules: set[str]) -> dict[str, str]:
    """The rewritten sources of the modules and of all that these import: {flat name: text}."""
    found, wanted = {}, set(modules)
    while wanted:
        module = wanted.pop()
        if flat(module) not in found:
            rewriting = Rewriting(module, path_of(module).read_text(encoding="utf-8"))
            found[flat(module)] = rewriting.text()
            wanted |= rewriting.needed
    return found


def flat(module: str) -> str:
    """The name of a module's file in the folder: `imp_ds.moe.layer` is moe_layer, another package's keeps its name."""
    return module.removeprefix("imp_ds.").replace(".", "_")


def path_of(module: str) -> Path | None:
    """The file of a module of imp_ds, or of one that is imported; None where there is none."""
    if module.split(".")[0] != "imp_ds":
        return Path(sys.modules[module].__file__)
    place = ROOT.joinpath(*module.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def is_carried(name: str) -> bool:
    """Whether a name is that of a module that folders may carry."""
    parts = name.split(".")
    return parts[0] == "imp_ds" and len(parts) > 1 and parts[1] in CARRIED and path_of(name) is not None


@dataclass
class Rewriting:
    """One module, as it stands in the folder. needed: modules that `text` found it to need."""

    module: str
    source: str
    needed: set[str] = field(default_factory=set)
    by_name: set[str] = field(default_factory=set)  # those that no line `from .NAME import` names

    def text(self) -> str:
        """The source with its imports, and its strings that name modules, rewritten."""
        tree, changes = ast.parse(self.source), []
        guarded = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.Try) for node in ast.walk(outer)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                lines = self._imports(node, id(node) in guarded)
                if lines is not None:
                    changes.append((node, lines))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_carried(node.value):
                self._by_name(node.value)
                changes.append((node, f'__package__ + ".{flat(node.value)}"'))
        text = self._changed(changes)
        if self.by_name:
            hints = "\n".join(f"from .{flat(name)} import __doc__ as _" for name in sorted(self.by_name))
            text += (
                "\n\nif False:  # imported by name; transformers takes along what such lines name\n"
                + indent(hints, "    ")
                + "\n"
            )
        return text

    def _changed(self, changes: list[tuple[ast.AST, str]]) -> str:
        """The source with the text of these nodes in place of their own, from the last to the first."""
        lines = [line.encode() for line in self.source.splitlines(keepends=True)]  # columns of ast are bytes
        for node, text in sorted(changes, key=lambda change: (change[0].lineno, change[0].col_offset), reverse=True):
            first, last = lines[node.lineno - 1][: node.col_offset], lines[node.end_lineno - 1][node.end_col_offset :]
            if isinstance(node, ast.stmt):
                text = indent(text, " " * node.col_offset)[node.col_offset :]
            lines[node.lineno - 1 : node.end_lineno] = [first + text.encode() + last]
        return b"".join(lines).decode()

    def _imports(self, node: ast.Import | ast.ImportFrom, is_guarded: bool) -> str | None:
        """What stands in place of an import; None: what stands there."""
        if isinstance(node, ast.ImportFrom) and node.level:
            raise UserError(
                f"{self.module} cannot be carried by an exported folder", got="a relative import", allowed="absolute ones"
            )
        modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if any(name.split(".")[0] == "imp_ds" for name in modules):
            return "\n".join(line for alias in node.names for line in self._own(node, alias))
        top = modules[0].split(".")[0]
        if top in sys.stdlib_module_names or top in INSTALLED or is_guarded:
            return None
        return f"try:\n{indent(ast.unparse(node), '    ')}\nexcept ImportError:\n" + indent(self._without(node, top), "    ")

    def _own(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> list[str]:
        """The line that imports one name from a module of this package."""
        if isinstance(node, ast.ImportFrom):
            inner = f"{node.module}.{alias.name}"
            if not is_carried(inner):
                self._need(node.module)
                return [f"from .{flat(node.module)} import {ast.unparse(alias)}"]
            self._by_name(inner)
            return [f"from . import {flat(inner)} as {alias.asname or alias.name}"]
        self._by_name(alias.name)
        return [f"from . import {flat(alias.name)}" + (f" as {alias.asname}" if alias.asname else "")]

    def _without(self, node: ast.Import | ast.ImportFrom, top: str) -> str:
        """What is done where a package is not installed."""
        if top not in _ABSENT:
            return "raise"
        self._need(_NAMES)
        names = [(alias.asname or alias.name, alias.name) for alias in node.names]
        made = [f'{bound} = absent("{_ABSENT[top]}", "{name}")' for bound, name in names]
        return "\n".join([f"from .{flat(_NAMES)} import absent", *made])

    def _need(self, module: str) -> None:
        if not is_carried(module):
            raise UserError(
                f"{self.module} cannot be carried by an exported folder", got=f"it imports {module}",
                allowed=f"of imp_ds what models need: {', '.join(sorted(CARRIED))}",
            )  # fmt: skip
        self.needed.add(module)

    def _by_name(self, module: str) -> None:
        self._need(module)
        self.by_name.add(module)
