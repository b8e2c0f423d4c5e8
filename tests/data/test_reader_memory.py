"""A reader of ten million samples takes no more memory than one of a thousand: what grows stays in its index."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imp_ds.data.index import IndexWriter
from imp_ds.data.storage import Storage

SAMPLES = {"few": 10**3, "some": 10**5, "many": 10**7}
# opens the reader, asks for the keys and the members of a thousand random rows, and in what order 1,000 places come
READ = """
import random, resource, sys
from types import SimpleNamespace
from imp_ds.data.order import SourceOrder
from imp_ds.data.sources import webdataset
from imp_ds.data.sources.splits import Wanted
from imp_ds.data.storage import Storage
from imp_ds.tasks import Source

root, cache = sys.argv[1:]
wanted = Wanted(Storage(cache), root, Source(path="t", format="webdataset", vision="png"), "train")
reader = webdataset.open_split(wanted)
order = SourceOrder(reader.shard_rows, [0], 65536)
for n in range(1000):
    row = random.randrange(len(reader))
    assert reader.key(row).startswith("train-0.tar/") and "png" in reader.fields(row)
    assert order.at(n * len(reader) // 1000)[0] == 0
print(len(reader), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write(folder, samples: int) -> None:
    """A shard of that many samples, by its index alone: names of eight letters or digits, one member each."""
    folder.mkdir(parents=True)
    (folder / "train-0.tar").write_bytes(bytes(1024))
    file = Storage().file(str(folder / "train-0.tar"))
    writer = IndexWriter(
        folder / "train-0.tar.idx", state="uint8", key_end="int64", names="uint8", member_end="int64", extension="uint16",
        offset="int64", size="int64",
    )  # fmt: skip
    for begin in range(0, samples, 10**6):
        number = np.arange(begin, min(begin + 10**6, samples))
        writer.append("state", np.zeros(len(number)))
        writer.append("key_end", (number + 1) * 8)
        writer.append("names", number.astype(">u8").view(np.uint8) % 64 + ord("0"))
        writer.append("member_end", number + 1)
        writer.append("extension", np.zeros(len(number)))
        writer.append("offset", number * 1024 + 512)
        writer.append("size", np.full(len(number), 100))
    writer.close(extensions='["png"]', stamp=file.stamp, format="1")


@pytest.fixture(scope="module")
def mib(tmp_path_factory) -> dict[str, int]:
    """The most memory that a process has held, by the number of samples."""
    found = {}
    for name, samples in SAMPLES.items():
        root = tmp_path_factory.mktemp(name)
        write(root / "t", samples)
        command = [sys.executable, "-c", READ, str(root), str(root / "cache")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        rows, found[name] = map(int, done.stdout.split())
        assert rows == samples
    return found


@pytest.mark.parametrize("name", ["some", "many"])
def test_memory_does_not_grow_with_the_samples(mib, name):
    assert mib[name] - mib["few"] <= 64
