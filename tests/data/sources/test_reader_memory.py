"""A reader of ten million samples takes no more memory than one of a thousand: what grows stays in its index."""

import json
import os
import random
import sys
import zlib

import numpy as np
import pytest

from helpers.processes import run
from imp_ds.data.files.storage import Storage
from imp_ds.data.sources.tar.index import FORMAT

SAMPLES = {"few": 10**3, "some": 10**5, "many": 10**7}
# for one source after another: opens the reader, asks for the keys and the members of a thousand random rows, and in what order
# 1,000 places come; says the rows and the most memory so far
READ = """
import json, resource, sys
from types import SimpleNamespace
from imp_ds.data.order.order import SourceOrder
from imp_ds.data.sources.webdataset import WebDatasetFormat
from imp_ds.data.sources.splits import Wanted
from imp_ds.data.files.storage import Storage
from imp_ds.tasks import Source

root, rows = sys.argv[1:]
for name, asked in json.loads(rows).items():
    wanted = Wanted(Storage(f"{root}/cache"), root, Source(path=name, format="webdataset", vision="png"), "train")
    reader = WebDatasetFormat().open_split(wanted)
    order = SourceOrder(reader.shard_rows, [0], 65536)
    for n, row in enumerate(asked):
        assert reader.key(row) == f"train-0.tar/{row:08d}" and reader.fields(row)["png"] == ("png", row * 1024 + 512, 100)
        place = n * len(reader) // 1000
        assert order.at(range(place, place + 1))[0][0] == 0
    print(len(reader), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def asked(samples: int) -> list[int]:
    """A thousand random rows."""
    return random.Random(0).choices(range(samples), k=1000)


def write(folder, samples: int) -> None:
    """A shard of that many samples, by its index alone: names of eight letters or digits, one member each.

    Of the index only the rows that will be asked for are written, the rest are holes: the file is as long as it says, and reads
    as zeros there.
    """
    folder.mkdir(parents=True)
    (folder / "train-0.tar").write_bytes(bytes(1024))
    stamp = Storage().file(str(folder / "train-0.tar")).stamp
    facts = dict(crc32="00000000", repeated="", torn="", extensions='["png"]', stamp=stamp, format=FORMAT)
    lengths = dict(samples=("I64", 3 * samples), members=("I64", 3 * samples), names=("U8", 8 * samples))
    header, at, begin = {"__metadata__": facts}, 0, {}
    for name, (kind, length) in lengths.items():
        begin[name], end = at, at + length * {"I64": 8, "U8": 1}[kind]
        header[name] = {"dtype": kind, "shape": [length], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "train-0.tar.idx", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + at)
        for row in asked(samples):
            for number in {max(0, row - 1), row}:  # a sample begins where the one before it ends
                # its state, the ends of its name and of its members
                ends = np.array([0, 8 * (number + 1), number + 1])
                os.pwrite(file.fileno(), ends.tobytes(), start + begin["samples"] + 24 * number)
            member = np.array([0, row * 1024 + 512, 100])  # extension, offset, size
            os.pwrite(file.fileno(), member.tobytes(), start + begin["members"] + 24 * row)
            os.pwrite(file.fileno(), b"%08d" % row, start + begin["names"] + 8 * row)
    with open(folder / "train-0.tar.idx", "rb+") as file:
        found = 0  # the checksum of all, its own place as zeros
        while block := file.read(1 << 24):
            found = zlib.crc32(block, found)
        os.pwrite(file.fileno(), f"{found:08x}".encode(), 8 + text.index(b"00000000"))


@pytest.fixture(scope="module")
def mib(tmp_path_factory) -> dict[str, int]:
    """The most memory that a process has held up to a number of samples."""
    root = tmp_path_factory.mktemp("memory")
    for name, samples in SAMPLES.items():
        write(root / name, samples)
    rows = json.dumps({name: asked(samples) for name, samples in SAMPLES.items()})
    done = run([sys.executable, "-c", READ, root, rows], timeout=120)
    lines = [[int(number) for number in line.split()] for line in done.output.splitlines()]
    assert [rows for rows, _ in lines] == list(SAMPLES.values())
    return {name: most for name, (_, most) in zip(SAMPLES, lines)}


@pytest.mark.parametrize("name", ["some", "many"])
def test_memory_does_not_grow_with_the_samples(mib, name):
    assert mib[name] - mib["few"] <= 64
