"""Values that somebody may give a field of a run's configuration, and what becomes of the run: a valid plan, or one message."""

import copy
import json
from collections.abc import Iterator

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.overrides import parse_record
from imp_ds.train.schedule import build_schedule

# as JSON, or plain text where it is none
VALUES = [
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 400, "-1", "0", "9223372036854775808", "1e-320", "1e308",
    "true", "false", "null", "[]", "{}", "[[]]", '""', '"a/b"', '"../x"', '"\\u0000\\u001b[31m"', '"\\ud800"',
    '"' + "x" * 10_000 + '"',
    "[1e400]", "[-1, 0, 5]", '["a/b"]', "[true]", "0.5", "3", "1000000000",
]  # fmt: skip
LONGEST = 13_000  # characters of a message


def paths(value, path: tuple = ()) -> Iterator[tuple]:
    """All keys and places inside a value of JSON."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from paths(part, (*path, key))


def fields(run: RunConfig) -> list[tuple]:
    """One path for each field of each record: of several entries of a list the first that has it."""
    found = {}
    for path in paths(run.model_dump(mode="json")):
        found.setdefault(tuple("*" if isinstance(key, int) else key for key in path), path)
    return list(found.values())


def attempt(run: RunConfig, path: tuple, text: str) -> list[bool]:
    """Give a field the value by --set, and in a file where it is JSON: for each whether it is taken. Raises whatever is no
    UserError, and AssertionError for a message that nobody would read."""
    fns = [lambda: run.override([".".join(map(str, path)) + f"={text}"])]
    try:
        data = _with(run.model_dump(mode="json"), path, json.loads(text))
        fns.append(lambda: parse_record(RunConfig, data, "my_run.json"))
    except ValueError:  # YAML and --set take it as a text
        pass
    return [_taken(fn) for fn in fns]


def _with(data: dict, path: tuple, value) -> dict:
    data = copy.deepcopy(data)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return data


def _taken(make) -> bool:
    try:
        run = make()
        run.model.to_config(run.data.vocab_size, run.tasks)
        build_schedule(run.train.schedule, run.tasks, run.train.seed, 1, 0)
        for step in (0, 1, run.train.steps - 1):
            run.learning_rate(step)
        again = RunConfig.model_validate_json(run.model_dump_json())
    except UserError as error:
        assert len(str(error)) < LONGEST, str(error)[:300]
        return False
    assert again == run  # what a run is written down as
    return True
