"""Options that go to other machines through deepspeed's pdsh: a shell there must not change or execute them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imp_ds.cli.quoting import quote, unquote
from imp_ds.errors import UserError

ROOT = Path(__file__).parents[2]
HARD = ["a;b", "{x,y}", "it's", 'say "so"', "$(touch executed)", "`touch executed`", "two  words", "", "\u00e4\n\\", "--set", "*"]


def test_a_word_is_what_it_stands_for():
    word = quote(HARD)
    assert set(word) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=")
    assert unquote(["train", word, "--resume"]) == ["train", *HARD, "--resume"]
    with pytest.raises(UserError, match="damaged"):
        unquote([word[:-3] + "!"])


def test_the_launcher_and_a_remote_shell_leave_quoted_options_as_they_are(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    # what pdsh and ssh do: the arguments behind the hosts become one line for the shell of the other machine
    pdsh = 'while [[ $1 != -w ]]; do shift; done; shift 2; line="$*"; exec bash -c "${line//%n/0}"'
    for name, body in (("pdsh", pdsh), ("ssh", "exit 0")):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    value = "jpg;png{a,b}$(touch executed)'\""
    clean = {name: text for name, text in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [Path(sys.executable).parent / "deepspeed", "--hostfile", "hosts", "--force_multi", "--master_addr", "127.0.0.1",
         "--module", "imp_ds", "recipes", "show", "digits_debug", quote(["--set", f"tasks.0.source.vision={value}"])],
        cwd=tmp_path, env={**clean, "PATH": path, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert value in done.stdout.replace("''", "'"), done.stdout + done.stderr
    assert not (tmp_path / "executed").exists()
