"""One kind of work for many samples, before the next kind for any of them.

To open, decode, crop and resize a small image are four libraries' code, which together do not fit into a processor's caches. One
image after another, each evicts the others; one kind after another, an image of 32 x 32 takes six tenths of the time
(benchmarks/results/loader.md).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from imp_ds.modalities.media import BadSample

_HELD = 1 << 19  # bytes, decoded, of media that are open together: what a core's own cache holds (benchmarks/results/loader.md)


def in_turn(work: Callable, *samples: Iterable) -> list:
    """`work(item of the first, item of the second ...)` for one sample after another. A sample whose first item is a BadSample,
    or for which `work` raises one, has that as its result, and the others go on."""
    return [_result(work, items) for items in zip(*samples, strict=True)]


def opened_in_parts(opened: Callable, samples: Sequence) -> Iterator[tuple[slice, list]]:
    """What `opened` gives `in_turn` for each sample, in runs that are held together: (which samples, what is open).

    opened: gives something with `bytes`, what it takes when it is decoded, or None for what need not or cannot be opened yet and
        ends a run.
    """
    begin, held, results = 0, 0, []
    for end, sample in enumerate(samples, start=1):
        result = _result(opened, (sample,))
        results.append(result)
        if type(result) is not BadSample:
            held += _HELD if result is None else result.bytes
        if held >= _HELD or end == len(samples):
            yield slice(begin, end), results
            begin, held, results = end, 0, []


def _result(work: Callable, items: tuple):
    if type(items[0]) is BadSample:
        return items[0]
    try:
        return work(*items)
    except BadSample as bad:
        return bad.without_frames()
