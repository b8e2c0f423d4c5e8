"""Freed memory is kept, and so not got again page by page."""

import platform
import subprocess
import sys

import pytest

# a batch is three arrays of 8 MiB, of which glibc gives back what is more than two of them; two rounds are not counted.
# Before the call, and after it
ROUNDS = """
import resource
import numpy as np
from imp_ds.data.loading.loader import keep_freed_memory
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        batch = [np.ones(1 << 20) for _ in range(3)]
        del batch
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for change in (lambda: None, keep_freed_memory):
    change()
    faults(2)
    print(faults(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_kept_memory_is_not_got_again():
    done = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, timeout=60, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back >= 10 * 3 * 4  # at least one for each piece of 2 MiB
    assert kept * 10 < given_back
