"""The error that a user is meant to read."""

from imp_ds.terminal.printable import printable

_UNDER = "\n" + " " * 11  # further lines stand under the first, so that no text can pose as another entry


_LONGEST = 4000  # characters of an entry: more would push the others off the screen


class UserError(ValueError):
    """Something the user gave cannot be used; the command line prints it in one block, without a traceback.

    Args:
        what: what failed, as a sentence.
        got: the value that was met.
        allowed: the values that would do.
        fix: how to mend it.
        shared: every rank raises this same error, so that one of them may speak for all.
    """

    def __init__(self, what: str, *, got: object = None, allowed: object = None, fix: str | None = None, shared: bool = False):
        lines = [_bounded(printable(what, lines=True))]
        for name, value in (("got", got), ("allowed", allowed), ("fix", fix)):
            if value is not None:
                lines.append(f"  {name + ':':8} " + _bounded(printable(value, lines=True)).replace("\n", _UNDER))
        super().__init__("\n".join(lines))
        self.what, self.shared = what, shared

    @property
    def one_line(self) -> str:
        """The message in one line, for lists and logs."""
        return "; ".join(" ".join(line.split()) for line in str(self).splitlines())


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"


class Absent(type):
    """The class of such a name: no object is an instance of it, and its attributes are absent too. It is an exception's, so that
    it may stand in `except` and in filters of warnings."""

    package = ""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(cls.package, f"{cls.__name__}.{name}")

    def __call__(cls, *args, **kwargs):
        raise UserError(f"{cls.__name__} is needed here", got=f"{cls.package} is not installed", fix=f"pip install {cls.package}")


def absent(package: str, name: str) -> type:
    """A stand-in for `name` of a package, called as pip installs it."""
    return Absent(name, (Warning,), {"package": package})
