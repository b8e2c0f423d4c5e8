"""What this machine has and lacks for training, and whether a hostfile and environment files are fit for the launcher.

Nothing is started, compiled or changed. Only what training cannot do without makes the result bad.
"""

import importlib.metadata
import importlib.util
import math
import os
import re
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from imp_ds.errors import UserError
from imp_ds.parallel.hostfile import check_environment_file, check_hostfile, environment_files

ROOT = Path(__file__).resolve().parents[3]
PORT = 29500  # the launcher's default
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One finding. state: "ok"; "lacks", which limits something; "broken", with which training cannot work."""

    name: str
    state: str
    found: str
    advice: str = ""


def examine(hostfile: str | Path | None = None) -> list[Check]:
    """All checks of this machine, in the order in which they matter, and of a hostfile. Raises UserError for a bad hostfile."""
    return [
        _python(),
        *_torch(),
        _package("deepspeed", needed=True),
        _package("transformers", needed=True),
        *_pins(),
        _gloo_or_nccl(),
        _cores(),
        *_memory(),
        _port(),
        _compiler(),
        _tool("ninja", "needed with the compiler only"),
        _tool("numactl", "needed for deepspeed --bind_cores_to_rank only"),
        _remote_shell(),
        *_environment(),
        _espeak(),
        *([] if hostfile is None else [_hostfile(hostfile)]),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Check("python", "ok" if good else "broken", version, "" if good else "Python 3.11 or newer is needed")


def _torch() -> list[Check]:
    check = _package("torch", needed=True)
    if check.state == "broken":
        return [check]
    import torch

    if not torch.cuda.is_available():
        return [
            check,
            Check("GPU", "lacks", "none", "training runs on the CPU: the recipe digits and the debug twins are meant for that"),
        ]
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in names)
    return [check, Check("GPU", "ok", f"CUDA {torch.version.cuda}: {found}")]


def _package(name: str, *, needed: bool) -> Check:
    try:
        return Check(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "broken" if needed else "lacks", "not installed", "pip install -r requirements.txt")


def _pins() -> list[Check]:
    """Installed versions against requirements.txt; every measured figure was obtained with the pins."""
    path = ROOT / "requirements.txt"
    if not path.is_file():
        return [Check("packages", "lacks", "requirements.txt not found", "run from a checkout to compare versions")]
    differ, missing = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)(?:==([\w.]+))?", line.split("#")[0].strip())
        if match is None:
            continue
        try:
            version = importlib.metadata.version(match[1])
        except importlib.metadata.PackageNotFoundError:
            missing.append(match[1])
            continue
        if match[2] and version.split("+")[0] != match[2]:
            differ.append(f"{match[1]} {version} (pinned {match[2]})")
    if missing:
        return [Check("packages", "broken", "not installed: " + ", ".join(missing), "pip install -r requirements.txt")]
    if differ:
        return [Check("packages", "lacks", "; ".join(differ), "other versions may work; figures were measured with the pins")]
    return [Check("packages", "ok", "as pinned in requirements.txt")]


def _gloo_or_nccl() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("communication", "broken", "no torch")
    import torch.distributed as dist

    if not dist.is_available():
        return Check("communication", "broken", "torch without distributed", "install a torch that has it")
    found = [name for name, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if there]
    return Check("communication", "ok" if found else "broken", ", ".join(found) or "neither gloo nor nccl")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("cores", "ok", f"{cores} usable")


def _memory() -> list[Check]:
    """Main memory, and the shared memory through which loader workers hand over batches."""
    checks = []
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
        checks.append(
            Check(
                "memory",
                "ok" if free > 4 * GIB else "lacks",
                f"{free / GIB:.1f} GiB available",
                "" if free > 4 * GIB else "a rank of digits may take up to 4 GiB",
            )
        )
    except (OSError, KeyError, ValueError):
        checks.append(Check("memory", "lacks", "unknown on this system"))
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free
        good = free > GIB // 4
        advice = "" if good else "loader workers need it: --set data.workers=0, or a larger --shm-size of the container"
        checks.append(Check("/dev/shm", "ok" if good else "lacks", f"{free / GIB:.2f} GiB free", advice))
    return checks


def _port() -> Check:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            return Check("port", "lacks", f"{PORT} is taken", "give the launcher another: --master_port N")
    return Check("port", "ok", f"{PORT} is free")


def _compiler() -> Check:
    found = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if found:
        return Check("compiler", "ok", found)
    return Check("compiler", "lacks", "no C++ compiler", "needed for DeepSpeed's own CPU Adam only (gpu_zero2_offload.json)")


def _tool(name: str, use: str) -> Check:
    found = shutil.which(name)
    return Check(name, "ok" if found else "lacks", found or "not found", "" if found else use)


def _remote_shell() -> Check:
    found = [name for name in ("ssh", "pdsh") if shutil.which(name)]
    if len(found) == 2:
        return Check("ssh, pdsh", "ok", "both")
    return Check(
        "ssh, pdsh", "lacks", ", ".join(found) or "neither", "needed for a hostfile only; --no_ssh, torchrun and srun do without"
    )


def _environment() -> list[Check]:
    """The files whose lines the launcher would set on every machine of a hostfile."""
    checks = []
    for path in environment_files():
        try:
            variables = check_environment_file(path)
        except UserError as error:
            what, *rest = str(error).splitlines()
            checks.append(Check("environment", "broken", what, "; ".join(" ".join(line.split()) for line in rest)))
        else:
            checks.append(Check("environment", "ok", f"{path} sets {', '.join(variables) or 'nothing'}"))
    return checks


def _hostfile(path: str | Path) -> Check:
    hosts = check_hostfile(path)
    slots = [number for _, number in hosts]
    found = f"{len(hosts)} host(s), {sum(slots)} slot(s)"
    if len(set(slots)) == 1:
        return Check("hostfile", "ok", found)
    advice = f"unequal slots: expert groups stay inside machines if train.ep_size divides {math.gcd(*slots)}"
    return Check("hostfile", "lacks", found, advice)


def _espeak() -> Check:
    """The library with the voices of the digits corpus."""
    if importlib.util.find_spec("espeakng_loader") is None:
        return Check("eSpeak NG", "lacks", "espeakng-loader is not installed", "needed to make the digits corpus only")
    import espeakng_loader

    there = Path(espeakng_loader.get_library_path()).is_file() and Path(espeakng_loader.get_data_path()).is_dir()
    return Check(
        "eSpeak NG",
        "ok" if there else "lacks",
        "library and voices" if there else "incomplete",
        "" if there else "reinstall espeakng-loader",
    )
