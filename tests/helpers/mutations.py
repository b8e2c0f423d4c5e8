"""Damaged and hostile variants of files: what fuzzing and its tests feed to decoders."""

from collections.abc import Sequence

import numpy as np

# values at the borders of what fields of headers hold
_BORDERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 10_000_019, 1 << 16, 1 << 24]
_HEAD = 1024  # most fields that say how to read the rest lie in the first bytes, or the last


def mutated(data: bytes, rng: np.random.Generator, words: Sequence[bytes] = ()) -> bytes:
    """One to eight changes of a file: bits flipped, bytes replaced, borders of number fields, stretches cut out, doubled, moved,
    zeroed, or the end cut off; where there are `words`, half of the changes write one of them over what stands there. A pure
    function of the arguments."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if len(changed) < 2:
            break
        if words and rng.random() < 0.5:
            _write(changed, rng, words[int(rng.integers(len(words)))])
        else:
            _CHANGES[int(rng.integers(len(_CHANGES)))](changed, rng)
    return bytes(changed)


def _write(changed: bytearray, rng: np.random.Generator, word: bytes) -> None:
    """A word instead of the letters and digits that stand there, or of up to eight bytes."""
    begin = end = _place(changed, rng)
    if rng.random() < 0.5:
        while begin and changed[begin - 1 : begin].isalnum():
            begin -= 1
        while changed[end : end + 1].isalnum():
            end += 1
    else:
        end += int(rng.integers(9))
    changed[begin:end] = word


def _place(changed: bytearray, rng: np.random.Generator) -> int:
    """Half of all places lie near the beginning or the end."""
    near = int(rng.integers(min(_HEAD, len(changed))))
    return [near, len(changed) - 1 - near, int(rng.integers(len(changed))), int(rng.integers(len(changed)))][int(rng.integers(4))]


def _stretch(changed: bytearray, rng: np.random.Generator) -> slice:
    begin = _place(changed, rng)
    return slice(begin, min(len(changed), begin + 1 + int(2 ** rng.uniform(0, 10))))


def _flip(changed: bytearray, rng: np.random.Generator) -> None:
    changed[_place(changed, rng)] ^= 1 << int(rng.integers(8))


def _replace(changed: bytearray, rng: np.random.Generator) -> None:
    changed[_place(changed, rng)] = int(rng.integers(256))


def _border(changed: bytearray, rng: np.random.Generator) -> None:
    width, order = int(2 ** rng.integers(4)), ["little", "big"][int(rng.integers(2))]
    value = _BORDERS[int(rng.integers(len(_BORDERS)))] % (1 << 8 * width)
    at = _place(changed, rng)
    changed[at : at + width] = value.to_bytes(width, order)[: len(changed) - at]


def _cut_out(changed: bytearray, rng: np.random.Generator) -> None:
    del changed[_stretch(changed, rng)]


def _double(changed: bytearray, rng: np.random.Generator) -> None:
    where = _stretch(changed, rng)
    changed[where.start : where.start] = changed[where]


def _move(changed: bytearray, rng: np.random.Generator) -> None:
    where, to = _stretch(changed, rng), _place(changed, rng)
    piece = changed[where]
    changed[to : to + len(piece)] = piece


def _zero(changed: bytearray, rng: np.random.Generator) -> None:
    where = _stretch(changed, rng)
    changed[where] = bytes(len(changed[where]))


def _cut_off(changed: bytearray, rng: np.random.Generator) -> None:
    if rng.random() < 0.25:  # it ends most other changes' chances
        del changed[max(1, _place(changed, rng)) :]


_CHANGES = [_flip, _flip, _replace, _border, _border, _cut_out, _double, _move, _zero, _cut_off]
