"""`train.trainable`: which parameters a run trains; the others keep their values, and no optimizer knows them."""

from fnmatch import fnmatchcase

from torch import nn

from imp_ds.errors import UserError


def freeze_others(model: nn.Module, patterns: list[str] | None) -> None:
    """Leave trainable what a pattern matches, names of parameters where * stands for anything; None: everything.

    Raises UserError for a pattern that nothing matches.
    """
    if patterns is None:
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            allowed = "names of parameters, where * stands for anything, for example *norm* or objectives.*"
            raise UserError("train.trainable: the model has no such parameter", got=pattern, allowed=allowed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
