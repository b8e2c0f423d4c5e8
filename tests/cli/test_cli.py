"""The command line from outside: exit codes, one message for each bad input and no traceback; the doctor and hostfiles."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch

from helpers.processes import run
from helpers.ranks import Ranks
from helpers.ranks import command as run_command
from imp_ds import cli
from imp_ds.commands.doctor.machine import examine
from imp_ds.errors import UserError
from imp_ds.parallel.hostfile import check_hostfile
from imp_ds.written_files import wrote_folder

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        for name in LAUNCHER:
            monkeypatch.setenv(name, "")  # so that what a command sets is undone too
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["imp_ds", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def test_help_lists_the_commands(command):
    code, out, _ = command("--help")
    assert code == 0 and "local" not in out
    for name in ("train", "eval", "export", "upcycle", "tune", "plan", "profile", "doctor", "corpus"):
        assert f"\n  {name} " in out


def test_the_help_of_each_command_has_an_example(command):
    groups = {"recipes": ("show", "copy", "fields"), "corpus": ("digits",), "data": ("check", "show", "tokenizer")}
    names = [(found.name,) for found in cli.app.registered_commands]
    names += [(group, name) for group, inner in groups.items() for name in inner]
    for name in names:
        code, out, _ = command(*name, "--help")
        text = " ".join(out.split())
        assert code == 0 and "Example: " in text and f"imp_ds {' '.join(name)}" in text.partition("Example: ")[2], name


def test_a_folder_that_was_written_is_named_with_what_is_in_it(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(bytes(1_000_000))
    (tmp_path / "inner" / "b").write_bytes(bytes(500_000))
    assert wrote_folder(tmp_path, "a test") == f"wrote {tmp_path}: 2 files, 1.5 MB, for a test"


def test_the_command_line_itself_loads_nothing_heavy():
    """Help is there at once."""
    report = run([sys.executable, "-X", "importtime", "-m", "imp_ds", "--help"], timeout=60).output
    loaded = {line.rpartition("|")[2].strip() for line in report.splitlines()}
    assert "imp_ds.cli" in loaded
    heavy = {"torch", "transformers", "deepspeed", "datasets", "pydantic", "rich", "imp_ds.recipes", "imp_ds.train"}
    assert not loaded & heavy


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["train", "digitz"], ["unknown recipe", "digitz", "did you mean digits?"]),
        (["train", "digits", "--set", "train.stes=3"], ["train.stes", "did you mean steps?"]),
        (["train", "digits", "--resume", "--set=train.steps=3"], ["--resume", "'--set=train.steps=3'", "auto, latest"]),
        (["train", "digits", "--resume", "-4"], ["--resume", "'-4'", "auto, latest"]),
        (["train", "digits", "--set", "train.steps=many"], ["train.steps", "'many'", "integer"]),
        (["plan", "digits", "--set", "train.ep_size=3", "--gpus", "3"], ["4 experts", "ep_size = 3", "1, 2, 4"]),
        (["plan", "digits", "--gpus", "5"], ["task image_text", "batch_size 32 over 5 ranks", "multiples of 5"]),
        (["doctor", "--hostfile", "does-not-exist"], ["hostfile", "does-not-exist"]),
        (["export", "run", "out", "--task", "birds"], ["--task chooses what a merged model serves", "birds", "--merge"]),
    ],
)
def test_bad_input_gives_one_message(command, arguments, parts):
    code, _, errors = command(*arguments)
    assert code == 2
    assert errors.startswith("error: ") and "  got: " in errors and errors.count("error: ") == 1
    for part in parts:
        assert part in errors


def test_the_process_ends_without_a_traceback(tmp_path):
    ended = Ranks(run_command, "--local_rank=0", "train", "digitz", ranks=1, folder=tmp_path).wait()
    assert ended.codes == [2]
    assert ended.outputs[0].startswith("error: unknown recipe") and "Traceback" not in ended.outputs[0]


def test_only_rank_0_speaks_before_the_ranks_have_joined(command):
    assert command("train", "digitz", RANK="1") == (2, "", "")
    assert command("train", "digitz", RANK="0")[2].startswith("error: unknown recipe")


@pytest.mark.parametrize("option", [["--local_rank=3"], ["--local-rank", "3"]])
@pytest.mark.parametrize("before", [True, False])
def test_the_launchers_rank_is_taken_before_and_after_the_command(command, option, before):
    words = ["train", "digitz"]
    assert command(*(option + words if before else words + option))[0] == 2
    assert os.environ["LOCAL_RANK"] == "3"


def test_an_error_of_one_joined_rank_is_not_lost(monkeypatch, capsys):
    ends = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", lambda code: ends.append(code) or sys.exit(code))
    with pytest.raises(SystemExit):
        cli._leave(UserError("the video cannot be read", got="x.mp4"))
    assert ends == [2] and capsys.readouterr().err == "error on rank 1: the video cannot be read\n"


def test_train_hands_everything_over(command, monkeypatch):
    calls = []
    stand_in = types.ModuleType("imp_ds.train.trainer")
    stand_in.train = lambda *arguments, **options: calls.append(arguments)
    monkeypatch.setitem(sys.modules, "imp_ds.train.trainer", stand_in)
    assert command("train", "digits", "--set", "train.steps=7", "--set", "train.seed=3")[0] == 0
    options = ["--deepspeed_config", "d.json", "--output_dir", "o", "--resume", "auto", "--hostfile", "h"]
    assert command("train", "digits", *options)[0] == 0
    (run, output_dir, ds_path, resume, hostfile), second = calls
    assert (run.train.steps, run.train.seed, output_dir) == (7, 3, Path("runs/digits"))
    assert (ds_path, resume, hostfile) == (None, None, None)
    assert second[1:] == (Path("o"), Path("d.json"), "auto", Path("h"))


def test_a_run_that_was_asked_to_stop_ends_with_the_code_to_requeue_on(command, monkeypatch):
    from imp_ds.train.preemption import Preempted

    def stop(*arguments, **options):
        raise Preempted("stopped after step 3")

    stand_in = types.ModuleType("imp_ds.train.trainer")
    stand_in.train = stop
    monkeypatch.setitem(sys.modules, "imp_ds.train.trainer", stand_in)
    assert command("train", "digits", "--resume", "latest", RANK="0") == (75, "", "stopped after step 3\n")
    assert command("train", "digits", "--resume", "120", RANK="1") == (75, "", "")


@pytest.mark.parametrize("corpus", ["digits", "talk"])
def test_corpus_tells_its_progress_in_lines(corpus, command, monkeypatch):
    stand_in = types.ModuleType(f"imp_ds.data.{corpus}")

    def build(out, seed, *, scale, progress):
        for done in range(3):
            progress("films", done + 1, 3)
        return (str(out), seed, scale) == ("there", 5, 0.5)

    stand_in.build = build
    monkeypatch.setitem(sys.modules, f"imp_ds.data.{corpus}", stand_in)
    code, out, _ = command("corpus", corpus, "there", "--seed", "5", "--scale", "0.5")
    assert code == 0 and out.splitlines() == ["films: 3", "there: written in 0 s, 0 files, 0 MB"]
    assert "found complete" in command("corpus", corpus, "elsewhere")[1]


def test_wrong_usage_is_distinguished(command):
    code, _, errors = command("train")
    assert code == 2 and "Missing argument" in errors


def test_plan_prints_its_tables(command):
    code, out, errors = command("plan", "imp_moe_b", "--nodes", "2", "--gpus", "8", "--set", "train.ep_size=8")
    assert code == 0, errors
    for part in ("509.70 M", "active per token", "40.13%", "Expert groups: 2", "8-15"):
        assert part in out


def test_doctor_finds_what_training_needs():
    checks = {check.name: check for check in examine()}
    assert checks["python"].state == checks["torch"].state == checks["deepspeed"].state == "ok"
    assert "gloo" in checks["communication"].found
    assert all(check.advice for check in checks.values() if check.state != "ok")


def hostfile(tmp_path, text: str) -> Path:
    path = tmp_path / "hosts"
    path.write_text(text)
    return path


def test_hostfile_is_read(tmp_path):
    path = hostfile(tmp_path, "# two machines\nnode-1.cluster slots=8\n\n10.0.0.2 slots=4  # the old one\n")
    assert check_hostfile(path) == [("node-1.cluster", 8), ("10.0.0.2", 4)]


@pytest.mark.parametrize(
    "text, part",
    [
        ("-oProxyCommand=evil slots=1\n", "no host name"),
        ("$(reboot) slots=1\n", "no host name"),
        ("a slots=1\nb slots=x\n", "line 2"),
        ("a slots=0\n", "no slots"),
        ("a slots=1\na slots=2\n", "twice"),
        ("# nothing\n", "lists no host"),
    ],
)
def test_hostfiles_that_are_refused(tmp_path, text, part):
    with pytest.raises(UserError, match=part):
        check_hostfile(hostfile(tmp_path, text))
