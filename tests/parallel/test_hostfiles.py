"""Hostfiles and environment files: the shipped ones are read as DeepSpeed's launcher reads them, and bad ones never reach it."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner
from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion

from helpers.processes import ROOT, environment, run
from imp_ds.commands.doctor.machine import examine
from imp_ds.errors import UserError
from imp_ds.parallel.hostfile import check_environment_file, check_hostfile, environment_files

HOSTFILES = {"one_node": 8, "two_nodes": 16, "eight_nodes_of_8": 64}


def test_all_shipped_hostfiles_are_known_here():
    assert {path.name for path in (ROOT / "hostfiles").iterdir()} == set(HOSTFILES)


@pytest.mark.parametrize("name, ranks", HOSTFILES.items())
def test_hostfile_is_read_alike(name, ranks):
    path = ROOT / "hostfiles" / name
    hosts = dict(check_hostfile(path))
    assert hosts == dict(fetch_hostfile(str(path)))
    assert sum(hosts.values()) == ranks


@pytest.mark.parametrize(
    "include, exclude, ranks",
    [  # the examples of eight_nodes_of_8, and what it says of them
        ("node1@node2", "", 16),
        ("node1@node2:0,1,2,3", "", 12),
        ("", "node5", 56),
        ("", "node5:7@node6:7", 62),
    ],
)
def test_filters_leave_the_ranks_that_the_comments_say(include, exclude, ranks):
    path = ROOT / "hostfiles" / "eight_nodes_of_8"
    example = f"INCLUDE='{include}'" if include else f"EXCLUDE='{exclude}'"
    assert example in path.read_text()
    active = parse_inclusion_exclusion(fetch_hostfile(str(path)), include, exclude)
    assert sum(map(len, active.values())) == ranks


def written(folder: Path, text: str) -> Path:
    path = folder / "file"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a slots=1\n-oProxyCommand=reboot slots=1\n", ["line 2", "no host name", "option of ssh"]),
        ("a;reboot slots=1\n", ["line 1", "no host name"]),
        ("user@a slots=1\n", ["no host name"]),
        ("a,b slots=1\n", ["no host name"]),  # pdsh would see two
        ("nöde slots=1\n", ["no host name"]),
        ("a slots=2\nb\n", ["line 2", "how many slots", "write b slots=N"]),
        ("a slots=-1\n", ["line 1", "no host"]),
        ("a slots=2 b slots=2\n", ["line 1", "no host"]),
        ("a slots=0\n", ["no slots", "comment the line out"]),
        ("a slots=1\n\nA slots=2\n", ["line 3", "twice", "as in line 1"]),
        ("", ["lists no host"]),
    ],
)
def test_hostfiles_that_are_refused_name_line_and_mend(text, parts, tmp_path):
    with pytest.raises(UserError) as caught:
        check_hostfile(written(tmp_path, text))
    message = str(caught.value)
    assert all(part in message for part in [*parts, "fix:"]), message


@pytest.mark.parametrize(
    "line, parts",
    [
        ("# NCCL_DEBUG=INFO", ["no variable"]),  # the launcher would export it, and the # end the command
        ("no comment", ["sets nothing"]),
        ("", ["sets nothing", "empty lines"]),
        ("export A=1", ["no variable", "without export"]),
        ("1A=1", ["no variable"]),
        ("A-B=1", ["no variable"]),
        ("=1", ["no variable"]),
        ("A=b c", ["need quoting", "set A in the profile"]),
        ("A=$(reboot)", ["need quoting"]),
        ("A=`reboot`", ["need quoting"]),
        ("A=1;reboot", ["need quoting"]),
        ('A="1"', ["need quoting"]),
        ("A=~/x", ["need quoting"]),
        ("A=50%n", ["need quoting"]),  # pdsh puts the number of the node there
        ("A=1\x0bB=2", ["need quoting"]),  # one line to the launcher
    ],
)
def test_environment_lines_that_are_refused_name_line_and_mend(line, parts, tmp_path):
    with pytest.raises(UserError) as caught:
        check_environment_file(written(tmp_path, f"GOOD=1\n{line}\n"))
    message = str(caught.value)
    assert all(part in message for part in [*parts, "line 2", "fix:"]), message


def test_what_is_accepted_reaches_a_shell_as_it_was_written(tmp_path):
    """Through the export lines that DeepSpeed's own runner makes of it."""
    expected = {"NCCL_SOCKET_IFNAME": "=eth0,ib0", "_P": "/opt/lib:/usr/lib64", "E": "", "X9": "a@b+c.d-e"}
    path = written(tmp_path, "".join(f"{name}={value}\n" for name, value in expected.items()))
    assert check_environment_file(path) == expected
    runner = SimpleNamespace(exports={})
    for line in path.open():
        PDSHRunner.add_export(runner, *line.split("=", maxsplit=1))
    exports = "".join(f"export {name}={value}; " for name, value in runner.exports.items())
    shown = run(["bash", "-c", f"{exports} env"], timeout=20, env={"PATH": os.environ["PATH"]}).output.splitlines()
    assert {f"{name}={value}" for name, value in expected.items()} <= set(shown)


def test_the_launchers_files_are_found(tmp_path, monkeypatch):
    home, here, other = tmp_path / "home", tmp_path / "here", tmp_path / "other"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    assert environment_files({}) == []
    for path in (home / ".deepspeed_env", here / ".deepspeed_env", here / "mine", other):
        path.write_text("A=1\n")
    assert [path.resolve() for path in environment_files({})] == [home / ".deepspeed_env", here / ".deepspeed_env"]
    assert [path.resolve() for path in environment_files({"DS_ENV_FILE": "mine"})] == [here / "mine"]
    assert environment_files({"DS_ENV_FILE": str(other)}) == [other]  # found from both folders, read once


def test_the_doctor_looks_at_hostfile_and_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ENV_FILE", str(written(tmp_path, "A=1\nB=$HOME\n")))
    checks = {check.name: check for check in examine(ROOT / "hostfiles" / "two_nodes")}
    assert checks["environment"].state == "broken" and "line 2: 'B=$HOME'" in checks["environment"].advice
    assert (checks["hostfile"].state, checks["hostfile"].found) == ("ok", "2 host(s), 16 slot(s)")
    unequal = tmp_path / "unequal"
    unequal.write_text("a slots=8\nb slots=4\n")
    assert "divides 4" in {check.name: check for check in examine(unequal)}["hostfile"].advice


def test_nothing_is_launched_on_a_bad_hostfile(tmp_path):
    finished = launch(tmp_path, "-oProxyCommand=reboot slots=1", "A=1")
    assert "no host name" in finished.output and finished.code == 2


def test_nothing_is_launched_with_a_bad_environment_file(tmp_path):
    finished = launch(tmp_path, "a slots=1", "A=$(reboot)")
    assert "need quoting" in finished.output and finished.code == 1


def launch(folder: Path, hosts: str, variables: str):
    """train_hostfile.sh with a deepspeed that must not be reached."""
    (folder / "deepspeed").write_text("#!/usr/bin/env bash\necho launched; exit 0\n")
    (folder / "deepspeed").chmod(0o755)
    (folder / "hosts").write_text(hosts + "\n")
    (folder / "variables").write_text(variables + "\n")
    # the script puts .venv first, so it runs in a copy of the project that has none
    project = folder / "project"
    shutil.copytree(ROOT / "scripts", project / "scripts")
    (project / "imp_ds").symlink_to(ROOT / "imp_ds")
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = environment(PATH=path, DS_ENV_FILE=str(folder / "variables"))
    script = project / "scripts" / "train_hostfile.sh"
    finished = run(["bash", script, folder / "hosts", "digits_debug"], timeout=60, env=env, code=None)
    assert "launched" not in finished.output.splitlines()
    return finished
