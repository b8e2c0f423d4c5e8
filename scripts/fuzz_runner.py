"""What the fuzzers share: samples are read in a child process, which may end, hang or grow, and what escapes is reported and
kept.

A script names its kinds and calls `main`. The child is the same script with --work: it says the number of each sample before it
reads it, and the outcome after, so that the parent knows which one ended it, hung or took too much memory.
"""

import argparse
import faulthandler
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helpers.mutations import mutated

_START_S = 300.0  # until the first sample begins


class Kind(NamedTuple):
    """What is damaged, and how it is read.

    files: makes those to begin with, by name.
    read: reads a sample (name, content, generator of what else is drawn); raises BadSample or UserError for what is damaged.
    damaged: (name, content, generator) -> content.
    """

    files: Callable[[], dict[str, bytes]]
    read: Callable[[str, bytes, np.random.Generator], None]
    damaged: Callable[[str, bytes, np.random.Generator], bytes] = lambda _, data, rng: mutated(data, rng)


def sample(kinds: dict[str, Kind], kind: str, seed: int, number: int, files: list[tuple[str, bytes]]):
    """(name, damaged content, generator of the rest) of a sample: a pure function of these."""
    rng = np.random.default_rng([seed, number, *kind.encode()])
    name, data = files[int(rng.integers(len(files)))]
    return name, kinds[kind].damaged(name, data, rng), rng


def _files(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def work(kinds: dict[str, Kind], kind: str, seed: int, begin: int, end: int, folder: Path, memory: int) -> None:
    """The child: reads samples, says the number of each before and its outcome after."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (4 * memory, 4 * memory))  # the machine's memory is not ours to take
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = _files(folder)
    outcome(kinds[kind].read, *files[0], np.random.default_rng(0))  # whole: what is imported takes none of a sample's time
    for number in range(begin, end):
        print("begin", number, flush=True)
        found = outcome(kinds[kind].read, *sample(kinds, kind, seed, number, files))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if grown > memory:
            print(f"escape took {grown >> 20} MiB", flush=True)
            return  # the peak would hide those of the next samples
        print(found, flush=True)


def outcome(read: Callable, name: str, data: bytes, rng: np.random.Generator) -> str:
    """What came of a sample: "read", "bad REASON", "refused" or "escape ERROR"."""
    from imp_ds.errors import UserError
    from imp_ds.modalities.media import BadSample

    try:
        read(name, data, rng)
        return "read"
    except BadSample as bad:
        return f"bad {bad.reason}"
    except UserError:
        return "refused"
    except BaseException as error:
        return f"escape {type(error).__name__}: {error}".replace("\n", " ")


class Child:
    """A process that works, of which lines are read within a time."""

    def __init__(self, script: str, arguments: list[str], log: Path):
        self.log = log
        self._errors = log.open("wb")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        line = [sys.executable, script, "--work", *arguments]
        self._process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=self._errors, env=environment)
        self._rest = b""

    def line(self, seconds: float) -> str | None:
        """The next line; None where the child has ended. Raises TimeoutError."""
        until = time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def end(self) -> int:
        self._process.kill()
        self._errors.close()
        self._process.stdout.close()
        return self._process.wait()

    def exit_code(self) -> int:
        return self._process.wait()


class Fuzzer:
    """All samples of one kind.

    Args:
        folder: is made, and holds the files to begin with.
        options: of the command line.
    """

    def __init__(self, script: str, kinds: dict[str, Kind], kind: str, folder: Path, options: argparse.Namespace):
        self.script, self.kinds, self.kind, self.folder, self.options = script, kinds, kind, folder, options
        self.outcomes, self._began = Counter(), time.monotonic()
        folder.mkdir()
        for name, data in kinds[kind].files().items():
            (folder / name).write_bytes(data)

    def run(self) -> Counter:
        """Outcomes of all samples; what escapes is printed and kept."""
        number = self.options.begin
        end = number + self.options.mutations
        while number < end:
            given = [self.kind, str(self.options.seed), str(number), str(end), str(self.folder), str(self.options.memory << 20)]
            number = self.follow(Child(self.script, given, self.folder.parent / f"{self.kind}.log"), number)
        return self.outcomes

    def follow(self, child: Child, number: int) -> int:
        """Read what a child says until it ends; the number of the next sample."""
        begun, first = False, number
        while True:
            try:
                line = child.line(self.options.seconds if begun else _START_S)
                outcome = line if line is not None else f"escape ended with exit code {child.exit_code()}"
            except TimeoutError:
                line, outcome = None, f"escape took over {self.options.seconds} s"
            if line is None and not begun:  # between two samples: it is through, or ended itself after it took too much
                child.end()
                if number == first:
                    raise SystemExit(f"{outcome} before the first sample: {child.log.read_text(errors='replace')[-2000:]}")
                return number
            if line is not None and line.startswith("begin "):
                begun = True
                continue
            self._count(number, outcome)
            number, begun = number + 1, False
            if line is None:
                child.end()
                return number

    def _count(self, number: int, outcome: str) -> None:
        self.outcomes[outcome if outcome.startswith("bad") else outcome.split()[0]] += 1
        if outcome.startswith("escape"):
            self._keep(number, outcome)
        done = self.outcomes.total()
        if done % 1000 == 0:
            rate = done / (time.monotonic() - self._began)
            print(f"{self.kind}: {done} of {self.options.mutations}, {rate:.0f} a second, {dict(self.outcomes)}", flush=True)

    def _keep(self, number: int, outcome: str) -> None:
        self.options.found.mkdir(parents=True, exist_ok=True)
        name, data, _ = sample(self.kinds, self.kind, self.options.seed, number, _files(self.folder))
        path = self.options.found / f"{self.kind}-{self.options.seed}-{number}-{name}"
        path.write_bytes(data)
        print(f"{self.kind} {number}: {outcome}: {path}", flush=True)


def main(script: str, about: str, kinds: dict[str, Kind]) -> None:
    """The command line of a fuzzer; `script` is its file. Exits with 1 for an escape."""
    if sys.argv[1:2] == ["--work"]:
        kind, seed, begin, end, folder, memory = sys.argv[2:]
        work(kinds, kind, int(seed), int(begin), int(end), Path(folder), int(memory))
        return
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=sorted(kinds), default=sorted(kinds))
    parser.add_argument("--mutations", type=int, default=30_000, help="samples of each kind")
    parser.add_argument("--begin", type=int, default=0, help="number of the first sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="for one sample")
    parser.add_argument("--memory", type=int, default=2560, help="MiB of a process that reads, with its libraries")
    parser.add_argument("--found", type=Path, default=Path("fuzz_found"), help="folder of the samples that escaped")
    options = parser.parse_args()
    found = {}
    for kind in options.kinds:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = Fuzzer(script, kinds, kind, Path(folder) / kind, options).run()
        print(f"{kind}: {found[kind].total()} samples in {time.monotonic() - began:.0f} s", flush=True)
    escapes = sum(outcomes["escape"] for outcomes in found.values())
    said = "; ".join(f"{kind} {dict(outcomes)}" for kind, outcomes in found.items())
    print(f"{escapes} escapes in {sum(map(Counter.total, found.values()))} samples: {said}")
    sys.exit(escapes > 0)
