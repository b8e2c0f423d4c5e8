"""Hostfiles and environment files, read more strictly than DeepSpeed's launcher reads them (0.19.8, `launcher/runner.py`).

The launcher takes any word in front of `slots=N` for a host and hands it to ssh, where `-oProxyCommand=...` would be an
option. Each line of an environment file (`.deepspeed_env`) becomes `export NAME=value;` in the command that pdsh gives to
a shell on every machine: there `$` and backquotes work even inside the launcher's quotes, pdsh replaces `%n` and `%h`, and
a comment would swallow the rest of the command. What cannot go that way unharmed is refused before anything is started.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from imp_ds.errors import UserError

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"[A-Za-z0-9_@+=:,./-]*")


def check_hostfile(path: str | Path) -> list[tuple[str, int]]:
    """The hosts and slots of a hostfile, in order.

    Raises UserError for a line that is not "name slots=N", for a name that ssh could take for an option, for no slots and
    for a host that is listed twice.
    """
    hosts: dict[str, int] = {}
    lines_of: dict[str, int] = {}
    for number, line in enumerate(_lines(path, "hostfile"), 1):
        entry = line.split("#")[0].strip()
        if not entry:
            continue
        where = f"{path}, line {number}: {entry!r}"
        name, slots = _host(entry, where)
        known = lines_of.setdefault(name.casefold(), number)  # names of hosts are the same in capitals
        if known != number:
            raise UserError(
                "the hostfile lists a host twice", got=f"{where}, as in line {known}", allowed="each host once",
                fix="delete one of the lines, or add up their slots in one",
            )  # fmt: skip
        hosts[name] = slots
    if not hosts:
        raise UserError(
            "the hostfile lists no host", got=path, allowed="name slots=N on each line", fix="add a line for each machine"
        )
    return list(hosts.items())


def _host(entry: str, where: str) -> tuple[str, int]:
    """Name and slots of one line without its comment."""
    name, *rest = entry.split()
    if not _HOST.fullmatch(name):
        raise UserError(
            "the hostfile holds a name that is no host name", got=where,
            allowed="letters, digits and _ . : - after a letter or digit",
            fix="correct the name; one that begins with - would be an option of ssh",
        )  # fmt: skip
    if not rest:
        raise UserError(
            "the hostfile does not give how many slots a host has", got=where, allowed="name slots=N",
            fix=f"write {name} slots=N, one slot for each GPU of the machine",
        )  # fmt: skip
    slots = re.fullmatch(r"slots=([0-9]+)", " ".join(rest))
    if slots is None:
        raise UserError(
            "the hostfile holds a line that is no host", got=where, allowed="name slots=N", fix="correct or delete the line"
        )
    if int(slots[1]) < 1:
        raise UserError(
            "the hostfile gives a host no slots", got=where, allowed="slots=1 or more", fix="comment the line out with #"
        )
    return name, int(slots[1])


def environment_files(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The environment files that the launcher would read, started here: in the home folder and in the current one.

    DS_ENV_FILE renames them; an absolute path there is one file.
    """
    name = environ.get("DS_ENV_FILE", ".deepspeed_env")
    found = [Path(folder) / name for folder in (Path.home(), ".")]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def check_environment_file(path: str | Path) -> dict[str, str]:
    """The variables of an environment file.

    Raises UserError for a line that is not NAME=value (the launcher knows no comments and no empty lines there), for a name
    that is no identifier and for a value that a shell or pdsh would change.
    """
    variables = {}
    for number, line in enumerate(_lines(path, "environment file"), 1):
        where = f"{path}, line {number}: {line!r}"
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise UserError(
                "the environment file holds a line that sets nothing", got=where, allowed="NAME=value",
                fix="delete the line; the launcher knows no comments and no empty lines in this file",
            )  # fmt: skip
        if not _NAME.fullmatch(name):
            raise UserError(
                "the environment file sets a name that is no variable", got=where,
                allowed="letters, digits and _ after a letter or _", fix="write NAME=value, without export, quotes or comments",
            )  # fmt: skip
        if not _VALUE.fullmatch(value):
            raise UserError(
                "the environment file holds a value that would need quoting: shells on other machines would change it",
                got=where, allowed="letters, digits and _ @ + = : , . / -",
                fix=f"set {name} in the profile of each machine's shell, or in a script that starts the training there",
            )  # fmt: skip
        variables[name] = value
    return variables


def _lines(path: str | Path, kind: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file]  # lines end where the launcher ends them: str.splitlines knows more ends
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the {kind} cannot be read", got=f"{path}: {error}", fix="correct the path or the file") from None
