"""The fuzzer of decoders finds what escapes, and a few of its samples pass."""

import argparse
import importlib.util
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from mutations import mutated

SCRIPT = Path(__file__).parents[1] / "scripts/fuzz_media.py"


def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz_media", SCRIPT)
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
    fuzz_media, said = fuzzer(), iter(outcomes)

    class Child:
        def line(self, seconds):
            if (line := next(said)) is TimeoutError:
                raise TimeoutError
            return line

        def exit_code(self):
            return -signal.SIGSEGV

        def end(self):
            pass

    (tmp_path / "files").mkdir()
    (tmp_path / "files/x.wav").write_bytes(b"RIFF" * 20)
    options = argparse.Namespace(seed=0, mutations=9, seconds=1.0, found=tmp_path / "found")
    counted = fuzz_media.Counter()
    number = fuzz_media._follow(Child(), "audio", options, tmp_path / "files", counted, 0, 0.0)
    assert counted == expected and number == sum(expected.values())
    assert len(os.listdir(tmp_path / "found")) == expected["escape"]


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_some_damaged_media_of_each_kind_pass(tmp_path, monkeypatch, capsys, kind):
    line = ["fuzz_media.py", "--kinds", kind, "--mutations", "100", "--seed", "7", "--found", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        fuzzer().main()
    assert ended.value.code == 0, capsys.readouterr().out
    assert capsys.readouterr().out.startswith("0 escapes in 100 samples")
