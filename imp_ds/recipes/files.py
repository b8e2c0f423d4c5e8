"""A run as a JSON or YAML file: data alone, read by a safe loader; what is wrong is reported with its line."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.overrides import explain, shown_error
from imp_ds.stages import StagedRun

SUFFIXES = (".json", ".yaml", ".yml")
_LARGEST = 200_000  # values that a file may hold, an alias counted each time it is used


def read_run_file(path: Path) -> RunConfig | StagedRun:
    """The run in a file of the shape of run_config.json, or the stages in one with `name` and `stages`. Raises UserError, with
    file and line, for anything else."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        fix = f"relative paths are meant from {Path.cwd()}"
        raise UserError("the recipe cannot be read", got=f"{path}: {error.strerror}", fix=fix) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8", got=str(error), fix="save it as UTF-8") from None
    is_json = path.suffix == ".json"
    value = parse_json(text, path, dict) if is_json else None
    node = _compose(text, path, strict=not is_json)
    if not is_json:
        value = _construct(node, path)
    kind = StagedRun if "stages" in value else RunConfig
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        line = _line(node, shown_error(error)["loc"])
        raise explain(kind, error, f"{path}" + (f", line {line}" if line else "")) from None


def _compose(text: str, path: Path, *, strict: bool) -> yaml.Node | None:
    """The nodes of a text, which know their lines; of JSON, which has been read already, only as a help."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        return _checked(node, path) if strict else node
    except (yaml.YAMLError, RecursionError) as error:
        if not strict:
            return None
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        message = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}{line}: this is not YAML", got=message, fix="correct that line, or its indentation") from None


def _checked(root: yaml.Node | None, path: Path) -> yaml.Node:
    """The node of a mapping, without keys that stand twice, and not blown up by aliases."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            if sizes[id(node)] is None:
                raise UserError(f"{path}, line {node.start_mark.line + 1}: a value holds itself", fix="write it out")
            return sizes[id(node)]
        sizes[id(node)] = None
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node, path)
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        total = sizes[id(node)] = 1 + sum(size(part) for part in inner)
        if total > _LARGEST:
            got = f"more than {_LARGEST:,} values, with what aliases repeat"
            raise UserError(f"{path}, line {node.start_mark.line + 1}: this is too large for a run", got=got)
        return total

    if not isinstance(root, yaml.MappingNode):
        got = "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else repr(root.value)[:80]
        fix = "`imp_ds recipes show digits` prints one to begin with"
        raise UserError(f"{path} holds no run", got=got, allowed="name:, tasks:, train: ... of a RunConfig", fix=fix)
    size(root)
    return root


def _refuse_twice(node: yaml.MappingNode, path: Path) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in seen:
            raise UserError(f"{path}, line {line}: a key stands twice", got=f"{key.value}, also in line {seen[key.value]}")
        seen[key.value] = line


def _construct(node: yaml.Node, path: Path):
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        got = getattr(error, "problem", None) or error
        raise UserError(
            f"{path}{line}: this value is not of use", got=got, allowed="texts, numbers, lists and mappings"
        ) from None
    finally:
        loader.dispose()


def _line(node: yaml.Node | None, loc: tuple) -> int | None:
    """The line of a path of pydantic's, as deep as the file has it; tags of unions are passed over."""
    line = None
    for part in loc:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    node, line = value, key.start_mark.line + 1
                    break
    return line
