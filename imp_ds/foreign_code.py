"""Loading what somebody else may have made: a model, processor or tokenizer, from a folder or a hub.

Whether code that comes with it may run: no, unless the command line allows it. Where transformers does not know, it asks on
standard input, and runs the code after a "y": every loading call of ours goes through here.
"""

from imp_ds.errors import UserError

OPTION = "--trust_remote_code"
_TRUSTED = False


def trust() -> None:
    """From here on, such code is run in this process: what --trust_remote_code allows."""
    global _TRUSTED
    _TRUSTED = True


def said() -> dict[str, bool]:
    """The argument for each `from_pretrained`."""
    return {"trust_remote_code": _TRUSTED}


def options() -> list[str]:
    """The options of our command line before the command, for a process that is to do as this one does."""
    return [OPTION] if _TRUSTED else []


def load(kind, name, what: str, *, allowed: str | None = None, fix: str | None = None, **arguments):
    """`kind.from_pretrained(name, **arguments)`.

    Raises UserError with the sentence `what` for whatever a file that is damaged, hostile or not there makes of it.
    """
    try:
        return kind.from_pretrained(name, **said(), **arguments)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # each reader of a damaged file fails in its own way; what panics in Rust is no Exception
        lines = str(error).strip().splitlines()
        got = f"{name}: {type(error).__name__}" + (f": {lines[0]}" if lines else "")
        raise UserError(what, got=got[:_LONGEST], allowed=allowed, fix=fix) from None


_LONGEST = 500  # characters of what is shown
