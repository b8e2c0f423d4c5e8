"""What recipes set of texts."""

from typing import Literal

from pydantic import Field

from imp_ds.records import Record


class TextView(Record):
    """How a task reads: at most `length` tokens, padded to exactly that many."""

    length: int = Field(16, ge=1, description="tokens")


class TextOptions(Record):
    """Sizes of a model that reads."""

    max: int = Field(4096, ge=1, description="the longest text in tokens")
    positions: Literal["factored", "table"] = Field("factored", description="a table whose rows are normed; or as they are")
