"""What a format of data sets is: a class that finds the splits of a source and opens them.

A format is one file: its subclass of `Format` under `@register_format`, and a reader, most often a `RowReader`. One of this
package has a line in `imp_ds.registry`; another is known once its module is imported, and `Source.format` then takes its name.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from imp_ds.data.sources.rows import RowReader
from imp_ds.data.sources.splits import Wanted
from imp_ds.records import Record
from imp_ds.registry import FORMATS
from imp_ds.tasks import Source


class Format(ABC):
    """How samples are stored.

    kind: the name in `Source.format`.
    Options: what may be set in `Source.options`; nothing by default.
    asks_hub: whether what is not found may be asked of a hub: such sources are opened last, when a wrong folder has been noticed.
    """

    kind: ClassVar[str]
    Options: ClassVar[type[Record]] = Record
    asks_hub: ClassVar[bool] = False

    @abstractmethod
    def find(self, wanted: Wanted) -> None:
        """Raises NoSplit when there is no such split, UserError and Unreachable. Reads no more than it must."""

    @abstractmethod
    def open_split(self, wanted: Wanted) -> RowReader:
        """The reader of a split; indexes that are missing are made. Raises UserError and Unreachable."""

    def options(self, source: Source) -> Record:
        """What a source sets of `Options`."""
        return self.Options.model_validate(source.options)


def register_format(kind: type[Format]) -> type[Format]:
    """Make a format known, as a decorator of its class. Raises UserError for one that leaves something open, or whose name is
    taken."""
    return FORMATS.register(kind, Format)


def format_of(source: Source) -> Format:
    """The format of a source."""
    return FORMATS[source.format]()
