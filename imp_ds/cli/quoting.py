"""Arguments that remote shells cannot change: one word of letters, digits, `-`, `_` and `=` that stands for all of them.

`deepspeed --hostfile` sends a command line through the shells of other machines, which execute `$(...)`, split at `;` and expand
braces. `imp_ds quote --set 'tasks.a.source.vision=jpg;png'` prints the word, and any command takes it among its arguments.
"""

import base64
import json

from imp_ds.errors import UserError

OPTION = "--quoted"


def quote(arguments: list[str]) -> str:
    """The word for `arguments`."""
    content = json.dumps(arguments).encode()
    return f"{OPTION}={base64.urlsafe_b64encode(content).decode()}"


def unquote(arguments: list[str]) -> list[str]:
    """`arguments` with each word of `quote` replaced by what it stands for. Raises UserError for a damaged word."""
    found = []
    for argument in arguments:
        found += _content(argument) if argument.startswith(f"{OPTION}=") else [argument]
    return found


def _content(word: str) -> list[str]:
    try:
        content = json.loads(base64.b64decode(word.partition("=")[2], altchars=b"-_", validate=True))
        if not isinstance(content, list) or not all(isinstance(entry, str) for entry in content):
            raise ValueError
    except (ValueError, RecursionError):
        raise UserError(f"a value of {OPTION} is damaged", got=word, allowed="what `imp_ds quote ARGUMENT ...` prints") from None
    return content
