"""Random generators that hang on nothing but what they are for: one for each sample, cheap enough to be made for each.

numpy's own mixing of several numbers into a seed (SeedSequence) takes 20 us, a tenth of what a small image takes to decode; a
hash of them takes 2 us (benchmarks/results/loader.md) and is no worse a seed.
"""

import struct
from hashlib import blake2b

import numpy as np
from numpy.random.bit_generator import ISeedSequence


class _Words(ISeedSequence):
    """A seed that is known already: uint64 [4]."""

    def __init__(self, words_4: np.ndarray):
        self.words_4 = words_4

    def generate_state(self, n_words: int, dtype=np.uint32) -> np.ndarray:
        assert n_words == 4 and dtype == np.uint64, (n_words, dtype)  # what PCG64 asks for
        return self.words_4


def sample_stream(*words: int) -> np.random.Generator:
    """A generator that is a pure function of these numbers, each of 64 bits with a sign; other numbers give another stream."""
    digest = blake2b(struct.pack(f"<{len(words)}q", *words), digest_size=32).digest()
    return np.random.Generator(np.random.PCG64(_Words(np.frombuffer(digest, np.uint64))))
