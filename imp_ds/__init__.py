"""imp_ds: training of sparse multimodal models on DeepSpeed, by alternating gradient descent.

Importing it makes the Auto classes of transformers know the models; it needs neither deepspeed nor datasets nor a GPU.
"""

import sys
from importlib import import_module

_HOMES = {
    "ImpConfig": "imp_ds.models.imp",
    "ImpModel": "imp_ds.models.imp",
    "ImpProcessor": "imp_ds.models.imp",
    "ImpForPreTraining": "imp_ds.pretraining",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'imp_ds' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _is_command() -> bool:
    """Whether this import is the first half of `python -m imp_ds`: its help should not wait seconds for torch."""
    words = sys.orig_argv
    return sys.argv[:1] == ["-m"] and "-m" in words and words[words.index("-m") + 1 :][:1] == ["imp_ds"]


if not _is_command():
    for _home in set(_HOMES.values()):
        import_module(_home)
