"""The fuzzers find what escapes, and a few of their samples pass."""

import argparse
import importlib.util
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers.mutations import mutated
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.append(str(SCRIPTS))
import fuzz_runner  # noqa: E402


def fuzzer(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutations_are_a_function_of_the_generator():
    data = bytes(range(256)) * 20
    first, second = ([mutated(data, np.random.default_rng(seed)) for seed in range(200)] for _ in range(2))
    assert first == second and len(set(first)) > 190 and data not in first[:5]
    assert all(isinstance(one, bytes) and one for one in first)
    assert mutated(b"", np.random.default_rng(0)) == b""


@pytest.mark.parametrize("outcomes, expected", [
    (["begin 0", "decoded", "begin 1", "bad too large", "begin 2", None], {"decoded": 1, "bad too large": 1, "escape": 1}),
    (["begin 0", "escape ValueError: no", "begin 1", TimeoutError], {"escape": 2}),
])  # fmt: skip
def test_crashes_hangs_and_exceptions_are_attributed(tmp_path, outcomes, expected):
    """What a child says, line by line: it ends, or says nothing, within the sample that it began last."""
    said = iter(outcomes)

    class Child:
        def line(self, seconds):
            if (line := next(said)) is TimeoutError:
                raise TimeoutError
            return line

        def exit_code(self):
            return -signal.SIGSEGV

        def end(self):
            pass

    kinds = {"sounds": fuzz_runner.Kind(lambda: {"x.wav": b"RIFF" * 20}, lambda name, data, rng: None)}
    options = argparse.Namespace(seed=0, mutations=9, seconds=1.0, found=tmp_path / "found")
    fuzzer = fuzz_runner.Fuzzer("", kinds, "sounds", tmp_path / "files", options)
    number = fuzzer.follow(Child(), 0)
    assert fuzzer.outcomes == expected and number == sum(expected.values())
    assert len(os.listdir(tmp_path / "found")) == expected["escape"]


def read_or_refused(kinds, kind: str, seed: int, numbers: range) -> Counter:
    """Outcomes of samples that are read in this process."""
    files, read = sorted(kinds[kind].files().items()), kinds[kind].read
    samples = (fuzz_runner.sample(kinds, kind, seed, number, files) for number in numbers)
    return Counter(fuzz_runner.outcome(read, *sample).split()[0] for sample in samples)


def test_what_escapes_is_reported():
    def read(name, data, rng):
        raise [BadSample("empty"), UserError("no"), MemoryError("of Arrow")][len(data)]

    kinds = {"all": fuzz_runner.Kind(lambda: {"x": b""}, read, lambda name, data, rng: bytes(int(rng.integers(3))))}
    found = read_or_refused(kinds, "all", 0, range(30))
    assert found.keys() == {"bad", "refused", "escape"} and found.total() == 30


@pytest.mark.parametrize("kind", ["tar", "parquet", "lines", "tables", "conversations", "index"])
def test_some_damaged_sources_of_each_kind_pass(kind):
    found = read_or_refused(fuzzer("fuzz_sources").KINDS, kind, 7, range(60))
    assert found.keys() <= {"read", "refused"} and found["read"] > 5


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what is damaged
def test_some_damaged_images_pass():
    found = read_or_refused(fuzzer("fuzz_media").KINDS, "image", 7, range(300))
    assert found.keys() <= {"read", "bad"} and found["read"] > 50


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_some_damaged_media_of_each_kind_pass(tmp_path, monkeypatch, capsys, kind):
    """In processes of their own, as the script runs them."""
    line = ["fuzz_media.py", "--kinds", kind, "--mutations", "50", "--seed", "7", "--found", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", line)
    module = fuzzer("fuzz_media")
    with pytest.raises(SystemExit) as ended:
        fuzz_runner.main(module.__file__, module.__doc__, module.KINDS)
    assert ended.value.code == 0, capsys.readouterr().out
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 escapes in 50 samples")
