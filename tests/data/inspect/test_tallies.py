"""What is counted of a corpus: spreads, copies, scripts; exact where little was added, and the same in parts as in one go."""

import io
from hashlib import blake2b

import numpy as np
import pytest

from imp_ds.data.inspect import tallies
from imp_ds.data.inspect.tallies import Contents, Spread, file_digest, script_of, text_digest


def spread(*values):
    found = Spread()
    for value in values:
        found.add(value)
    return found


def contents(texts, first=0):
    found = Contents()
    for row, text in enumerate(texts, start=first):
        found.add(text_digest(text), row)
    return found


def test_a_spread_says_what_was_added():
    found = spread(32, 64, 32, 500)
    # the third of four values is reached at 64, which three of four do not exceed; 95 % need all four
    assert found.summary() == {"least": 32, "median": 32, "95 %": 500, "largest": 500, "mean": 157, "count": 4}
    assert found.quantile(0.75) == 64


def test_a_spread_keeps_three_digits_and_the_exact_ends():
    found = spread(1234.5, 1237, 0)
    assert found.counts == {1230.0: 1, 1240.0: 1, 0.0: 1}
    assert (found.low, found.high, found.quantile(1.0)) == (0, 1237, 1237)


def test_a_spread_of_many_values_stays_small_and_true():
    values = np.random.default_rng(0).lognormal(3, 1, 20_000)
    found = spread(*values.tolist())
    assert len(found.counts) < 900 * 5
    assert found.quantile(0.5) == pytest.approx(np.quantile(values, 0.5), rel=0.01)
    assert found.quantile(0.95) == pytest.approx(np.quantile(values, 0.95), rel=0.01)


def test_spreads_add_up():
    full, parts = spread(1, 2, 3, 4), spread(1, 4)
    parts.merge(spread(2, 3))
    assert parts.summary() == full.summary()
    parts.merge(Spread())
    assert parts.summary() == full.summary()


def test_copies_are_counted_and_shown():
    found = contents(["a", "b", "a", "c", "a", "b"])
    assert (found.copies, found.different, found.every) == (3, 3, 1)
    assert found.examples == [(0, 2), (0, 4), (1, 5)]


def test_copies_in_parts_are_those_of_the_whole():
    texts = [str(number % 7) for number in range(30)]
    parts = contents(texts[:11])
    parts.merge(contents(texts[11:], first=11))
    full = contents(texts)
    assert (parts.copies, parts.different) == (full.copies, full.different) == (23, 7)


def test_many_contents_are_counted_by_a_known_share(monkeypatch):
    monkeypatch.setattr(tallies, "_KEPT", 1000)
    # 20,000 contents of which 5,000 come three times: 10,000 copies
    texts = [str(number) for number in range(20_000)] + [str(number) for number in range(5_000)] * 2
    found = contents(texts)
    assert found.every == 32 and len(found._first) <= 1000  # 20,000 / 1,000, the next power of two
    # of 625 kept ones 156 come again: a spread of about 1 / sqrt(156) = 8 %
    assert found.copies == pytest.approx(10_000, rel=0.3)
    assert found.different == pytest.approx(20_000, rel=0.15)
    halves = contents(texts[:3000])  # kept at another share
    assert halves.every < found.every
    halves.merge(contents(texts[3000:], first=3000))
    assert (halves.copies, halves.different, halves.every) == (found.copies, found.different, found.every)


def test_the_digest_of_a_file_is_that_of_its_bytes():
    one, other = file_digest(io.BytesIO(b"abc")), file_digest(io.BytesIO(b"abd"))
    assert len(one) == 8 and one != other
    assert one == blake2b((3).to_bytes(8, "big") + b"abc", digest_size=8).digest()


def test_of_a_large_file_both_ends_count(monkeypatch):
    monkeypatch.setattr(tallies, "_ENDS", 4)
    same = file_digest(io.BytesIO(b"1234....5678"))
    assert file_digest(io.BytesIO(b"1234,,,,5678")) == same
    for other in (b"x234....5678", b"1234....567x", b"1234.....5678"):
        assert file_digest(io.BytesIO(other)) != same
    assert file_digest(io.BytesIO(b"1234,678")) != file_digest(io.BytesIO(b"1234.678"))  # a small one is read in full


@pytest.mark.parametrize(
    "text, script",
    [
        ("a photo of a dog", "latin"), ("собака в парке OK", "cyrillic"), ("犬の写真です", "cjk"), ("これはいぬです", "hiragana"),
        ("كلب", "arabic"), ("개 사진", "hangul"), ("123 !?", "none"), ("", "none"), ("\ud800\ue000", "none"),
    ],
)  # fmt: skip
def test_scripts(text, script):
    assert script_of(text) == script
    assert len(text_digest(text)) == 8
