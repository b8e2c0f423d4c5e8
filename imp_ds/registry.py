"""What there is of a kind of part that a user may add to, by name: modalities, formats of data sets and evaluators.

The parts of this package have a line each below; their modules are imported when one is asked for, since what they import
is heavy. A part of another package is known from when its module is imported: its class says so by a decorator.
"""

import inspect
from collections.abc import Iterator
from importlib import import_module

from imp_ds.errors import UserError
from imp_ds.overrides import IMPORT, nearest, parse_record
from imp_ds.records import Record


class Registry:
    """Classes by the name in their attribute `kind`.

    Args:
        what: one of them, in messages.
        homes: name -> module, of those of this package.
    """

    def __init__(self, what: str, homes: dict[str, str]):
        self.what, self.homes = what, homes
        self._found: dict[str, type] = {}

    def __iter__(self) -> Iterator[str]:
        return iter([*self.homes, *(name for name in self._found if name not in self.homes)])

    def register(self, part: type, base: type) -> type:
        """Make a subclass of `base` known. Raises UserError for another class, for one that leaves open what `base` asks for, and
        for a name that is taken."""
        name = getattr(part, "kind", None)
        if not issubclass(part, base):
            raise UserError(f"this class is no {self.what}", got=part.__name__, allowed=f"a subclass of {base.__name__}")
        if inspect.isabstract(part):
            missing = ", ".join(sorted(part.__abstractmethods__))
            raise UserError(f"the {self.what} {part.__name__} does not define all parts", got=f"no {missing}", fix="define them")
        if not isinstance(name, str) or not name:
            raise UserError(f"the {self.what} {part.__name__} has no name", got=repr(name), fix='kind = "NAME"')
        taken, home = self._found.get(name, part), self.homes.get(name, part.__module__)
        if taken.__qualname__ != part.__qualname__ or home != part.__module__:
            other = taken.__name__ if home == part.__module__ else home
            raise UserError(f"two of one name: the {self.what} {name}", got=f"{part.__name__} and {other}", fix="rename one")
        self._found[name] = part
        return part

    def __getitem__(self, name: str) -> type:
        """The class of that name. Raises UserError for a name that is not known."""
        if self.known(name) not in self._found:
            import_module(self.homes[name])
        return self._found[name]

    def known(self, name: str) -> str:
        """The name itself. Raises UserError where nothing bears it."""
        if name not in [*self]:
            raise UserError(f"unknown {self.what}", got=name, allowed=nearest(name, self), fix=IMPORT)
        return name

    def options(self, name: str, given: dict) -> Record:
        """What is set of the part's own `Options`. Raises UserError for what they do not take."""
        if not given and name in self.homes:  # which would have to be imported
            return Record()
        kind = self[name].Options
        if given and not kind.model_fields:
            raise UserError(f"the {self.what} {name} takes no options", got=", ".join(given), fix="leave them out")
        return parse_record(kind, given, f"the options of the {self.what} {name}")


MODALITIES = Registry("modality", {  # in the order of their segments, and of all that is counted by modality
    "vision": "imp_ds.modalities.vision.modality",
    "audio": "imp_ds.modalities.audio.modality",
    "text": "imp_ds.modalities.text.modality",
    "sensors": "imp_ds.modalities.sensors",
    "messages": "imp_ds.modalities.messages.modality",
})  # fmt: skip
FORMATS = Registry("format", {
    "folder": "imp_ds.data.sources.folder",
    "parquet": "imp_ds.data.sources.parquet",
    "webdataset": "imp_ds.data.sources.webdataset",
    "huggingface": "imp_ds.data.sources.huggingface",
})  # fmt: skip
EVALUATORS = Registry("evaluator", {  # in the order in which they measure
    "captioning": "imp_ds.families.imp.evaluation.captioning",
    "masked_language": "imp_ds.families.imp.evaluation.masked_language",
    "similarity": "imp_ds.families.imp.evaluation.similarity",
    "named_classes": "imp_ds.families.imp.evaluation.named_classes",
    "heads": "imp_ds.families.imp.evaluation.heads",
    "probe": "imp_ds.families.imp.evaluation.probe",
    "answers": "imp_ds.families.uni_moe.evaluation.answers",
})  # fmt: skip
