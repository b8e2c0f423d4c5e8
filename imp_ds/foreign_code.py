"""Whether code that comes with a model or tokenizer, from a folder or a hub, may run: no, unless the command line says so.

Where transformers is not told, it asks on standard input, and runs the code after a "y": every loading call of ours tells it.
"""

_TRUSTED = False


def trust() -> None:
    """From here on, such code is run in this process: what --trust_remote_code says."""
    global _TRUSTED
    _TRUSTED = True


def said() -> dict[str, bool]:
    """The argument for each `from_pretrained`."""
    return {"trust_remote_code": _TRUSTED}
