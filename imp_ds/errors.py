"""The error that a user is meant to read."""


class UserError(ValueError):
    """Something the user gave cannot be used; the command line prints it in one block, without a traceback.

    Args:
        what: what failed, as a sentence.
        got: the value that was met.
        allowed: the values that would do.
        fix: how to mend it.
        shared: every rank raises this same error, so that one of them may speak for all.
    """

    def __init__(
        self, what: str, *, got: object = None, allowed: object = None, fix: str | None = None, shared: bool = False
    ):
        lines = [what]
        if got is not None:
            lines.append(f"  got:     {got}")
        if allowed is not None:
            lines.append(f"  allowed: {allowed}")
        if fix is not None:
            lines.append(f"  fix:     {fix}")
        super().__init__("\n".join(lines))
        self.what, self.shared = what, shared
