"""Numbers of a corpus, counted in memory that does not grow with it. Two of a kind are added up, so that processes can share the
counting.
"""

import unicodedata
from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from typing import BinaryIO

_KEPT = 1 << 17  # contents that are distinguished; of more, a known share
_EXAMPLES = 5
_ENDS = 8 << 20  # bytes of a large file that are read, at its beginning and at its end


class Spread:
    """How numbers of 0 or more are distributed: each to three digits, so at most 900 for each power of ten are held."""

    def __init__(self):
        self.counts: Counter[float] = Counter()
        self.low, self.high, self.sum = float("inf"), 0.0, 0.0

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, value: float) -> None:
        self.counts[float(f"{value:.3g}")] += 1
        self.low, self.high, self.sum = min(self.low, value), max(self.high, value), self.sum + value

    def merge(self, other: "Spread") -> None:
        self.counts.update(other.counts)
        self.low, self.high, self.sum = min(self.low, other.low), max(self.high, other.high), self.sum + other.sum

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of all does not exceed, to three digits; ends exactly."""
        wanted, seen = share * len(self), 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return min(max(value, self.low), self.high)
        raise ValueError("no value was added")

    def summary(self) -> dict[str, float]:
        """least, median, "95 %" (quantile), largest, mean, count."""
        return {
            "least": self.low, "median": self.quantile(0.5), "95 %": self.quantile(0.95), "largest": self.high,
            "mean": self.sum / len(self), "count": len(self),
        }  # fmt: skip


class Contents:
    """How many of the contents that were added had been added before, by 64 bits of a hash of theirs.

    Of more than 131,072 different ones only those are kept whose hash ends in some zeros, one in `every`: all copies of a content
    have one hash, so `copies` is then an estimate. `examples` are pairs of rows of one content.
    """

    def __init__(self):
        self.every, self.examples = 1, []
        self._first: dict[int, int] = {}  # hash -> row
        self._more: Counter[int] = Counter()  # hash -> how often it came again

    @property
    def copies(self) -> int:
        return self._more.total() * self.every

    @property
    def different(self) -> int:
        return len(self._first) * self.every

    def add(self, digest: bytes, row: int) -> None:
        """A content of `row`; `digest` has 8 bytes."""
        number = int.from_bytes(digest, "big")
        if number % self.every:
            return
        if number in self._first:
            self._more[number] += 1
            self._show(self._first[number], row)
        else:
            self._first[number] = row
            self._bound()

    def merge(self, other: "Contents") -> None:
        """Rows of the other come after the own ones."""
        self.every = max(self.every, other.every)
        for number, row in other._first.items():
            if number in self._first:
                self._more[number] += 1
                self._show(self._first[number], row)
            else:
                self._first[number] = row
        self._more.update(other._more)
        for pair in other.examples:
            self._show(*pair)
        self._prune()
        self._bound()

    def shared(self, other: "Contents") -> tuple[int, list[tuple[int, int]]]:
        """How many contents both have, an estimate where either keeps a share; and a few of them: own row, row of the other."""
        every = max(self.every, other.every)
        both = [number for number in self._first if number in other._first and number % every == 0]
        return len(both) * every, [(self._first[number], other._first[number]) for number in both[:_EXAMPLES]]

    def _show(self, row: int, same: int) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append((row, same))

    def _bound(self) -> None:
        while len(self._first) > _KEPT:
            self.every *= 2
            self._prune()

    def _prune(self) -> None:
        self._first = {number: row for number, row in self._first.items() if number % self.every == 0}
        self._more = Counter({number: times for number, times in self._more.items() if number % self.every == 0})


def text_digest(text: str) -> bytes:
    """8 bytes of the hash of a text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def file_digest(file: BinaryIO) -> bytes:
    """8 bytes of the hash of a file; of one above 16 MiB the size, the first 8 MiB and the last 8."""
    size = file.seek(0, 2)
    file.seek(0)
    found = blake2b(size.to_bytes(8, "big"), digest_size=8)
    found.update(file.read(_ENDS))
    if size > 2 * _ENDS:
        file.seek(size - _ENDS)
    while part := file.read(_ENDS):
        found.update(part)
    return found.digest()


def script_of(text: str) -> str:
    """The script of most letters of a text, as Unicode names it: "latin", "cyrillic", "arabic", "cjk"; "none" without letters."""
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    return scripts.most_common(1)[0][0] if scripts else "none"


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    # the first word of a letter's name is its script: LATIN SMALL LETTER A, CJK UNIFIED IDEOGRAPH-4E00
    return unicodedata.name(letter, "unknown").split()[0].split("-")[0].lower()
