"""Kill, damage and starve runs from outside: python scripts/try_damage.py [PART ...] [--trials 20] [--seed 0]

    kills    two ranks under torchrun; one of them or the launcher is killed with -9 at some moment, and the run is resumed
    runs     a file of a run's folder is damaged, and the run resumed for two more steps
    models   a file of an exported model's folder is damaged, and the model evaluated, asked, upcycled, or a run started from it
    disk     an output folder on a full disk, and one that may be read alone
    fields   every field of every record of a recipe with odd values

What it must show: one message and exit code 2, or the results of a run that nothing happened to, to the bit; no traceback,
nothing that hangs or is left. A trial of kills takes about a minute on two cores, one of runs or models some 10 s, four of disk
half a minute, fields two minutes. Prints what did not hold, and ends with exit code 1 then.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

STEPS, MORE, LIMIT_S = 12, 14, 120
SMALL = ["model.num_hidden_layers=2", "model.num_experts=0", "evaluations=[]", "data.workers=0", "train.log_every=1"]
SMALL += ["optimizer.decay_steps=100"]  # not that of the steps, which become more


class Fault(Exception):
    """What must not be."""


def train_line(corpus: Path, out: Path, steps: int, *more: str) -> list[str]:
    settings = [*SMALL, f"data.root={corpus}", f"train.steps={steps}", "train.save_every=4", *more]
    return ["train", "digits_debug", *(f"--set={one}" for one in settings), "--output_dir", str(out), "--resume", "auto"]


def forked(line: list[str], prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """`imp_ds LINE` in a process of its own, which has imported all already: exit code and output."""
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.setsid()
                os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
                prepare()
                sys.argv = ["imp_ds", *map(str, line)]
                from imp_ds.cli import main

                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
        deadline = time.monotonic() + LIMIT_S
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL), os.waitpid(pid, 0)
                raise Fault(f"hung: {' '.join(map(str, line))}")
            time.sleep(0.02)
        output.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), output.read().decode(errors="replace")


def check(code: int, output: str, allowed: tuple[int, ...] = (0, 2)) -> None:
    if "Traceback" in output or code not in allowed:
        raise Fault(f"exit code {code}:\n{output[-3000:]}")
    if code == 2 and output.count("error: ") != 1:
        raise Fault(f"not one message:\n{output[-3000:]}")


def losses(out: Path) -> dict[int, dict]:
    """{step: {task: loss}}, of each step as it was done last."""
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: {name: task["loss"] for name, task in r["tasks"].items()} for r in records if r["kind"] == "train"}


def weights(out: Path) -> dict[str, bytes]:
    last = max((out / "checkpoints").glob("step_*"))
    return {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


def damaged(path: Path, dice: random.Random) -> str:
    """Change a file somehow; returns how."""
    data = bytearray(path.read_bytes())
    how = dice.choice(["flip", "flip", "cut", "empty", "gone", "deep", "list", "zeros"])
    if how == "flip" and data:
        place = dice.randrange(len(data))
        data[place] ^= 1 << dice.randrange(8)
    elif how == "cut":
        del data[dice.randrange(len(data) + 1) :]
    elif how == "zeros":
        start = dice.randrange(len(data) + 1)
        data[start:] = bytes(len(data) - start)
    else:
        data = bytearray({"deep": b'{"a":' * 100_000, "list": b"[]"}.get(how, b""))
    path.unlink()
    if how != "gone":
        path.write_bytes(data)
    return f"{path.name}: {how}"


def kills(work: Path, corpus: Path, trials: int, dice: random.Random) -> Iterator[str]:
    def start(out: Path) -> subprocess.Popen:
        port = str(20000 + dice.randrange(20000))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "-m", "imp_ds"]
        log = (work / "kills.log").open("ab")
        return subprocess.Popen([*launcher, *train_line(corpus, out, STEPS)], cwd=ROOT, stdout=log, stderr=log)

    full, begun = work / "full", time.monotonic()
    if start(full).wait(LIMIT_S):
        raise Fault(f"the run that is compared with: {(work / 'kills.log').read_text()[-2000:]}")
    lasted = time.monotonic() - begun
    for trial in range(trials):
        out, output = work / f"killed_{trial}", work / "kills.log"
        output.write_bytes(b"")
        child = start(out)
        time.sleep(dice.uniform(0, 1.1 * lasted))
        tree = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)] if child.poll() is None else []
        if tree:
            dice.choice(tree).send_signal(signal.SIGKILL)
        child.wait(LIMIT_S)
        _, left = psutil.wait_procs(tree, timeout=30)
        for process in left:
            process.kill()
        if start(out).wait(LIMIT_S):
            raise Fault(f"not resumed: {output.read_text()[-3000:]}")
        same = losses(out) == losses(full) and weights(out) == weights(full)
        yield "" if same and not left else f"trial {trial}: same: {same}, left: {left}"
        shutil.rmtree(out)


def runs(work: Path, corpus: Path, trials: int, dice: random.Random) -> Iterator[str]:
    straight, full = work / "straight", work / "run"
    check(*forked(train_line(corpus, straight, MORE)), allowed=(0,))
    check(*forked(train_line(corpus, full, STEPS)), allowed=(0,))
    files = sorted(path.relative_to(full) for path in full.rglob("*") if path.is_file() and path.name != ".lock")
    for trial in range(trials):
        out = shutil.copytree(full, work / f"run_{trial}", symlinks=True)
        how = damaged(out / files[trial % len(files)], dice)
        code, output = forked(train_line(corpus, out, MORE))
        check(code, f"{how}\n{output}")
        kept = {} if code else {step: found for step, found in losses(straight).items() if step > STEPS}
        wrong = [step for step, found in kept.items() if losses(out).get(step) != found]
        yield f"{files[trial % len(files)]}, {how}: other losses in the steps {wrong}" if wrong else ""
        shutil.rmtree(out)


def models(work: Path, corpus: Path, trials: int, dice: random.Random) -> Iterator[str]:
    run, model = work / "trained", work / "model"
    check(*forked(train_line(corpus, run, 4)), allowed=(0,))
    check(*forked(["export", run, model]), allowed=(0,))
    image = next(path for path in corpus.rglob("*.png")) if any(corpus.rglob("*.png")) else corpus
    files = [path.name for path in sorted(model.iterdir()) if path.name not in ("README.md", "results.png")]
    for trial in range(trials):
        folder, made = shutil.copytree(model, work / f"model_{trial}"), work / f"made_{trial}"
        how = damaged(folder / files[trial % len(files)], dice)
        for line in (
            ["eval", folder],
            ["predict", folder, image],
            ["upcycle", folder, made, "--num_experts", "2"],
            train_line(corpus, made / "run", 1, f"train.init_from={folder}", f"data.tokenizer={folder}"),
        ):
            code, output = forked(line)
            check(code, f"{how}, {line[0]}\n{output}")
            yield ""
        shutil.rmtree(folder), shutil.rmtree(made, ignore_errors=True)


def disk(work: Path, corpus: Path, trials: int, dice: random.Random) -> Iterator[str]:
    straight, small, refused = work / "straight_disk", work / "small", work / "refused"
    check(*forked(train_line(corpus, straight, STEPS)), allowed=(0,))
    need = sum(path.stat().st_size for path in straight.rglob("*") if path.is_file())
    small.mkdir(), refused.mkdir()
    if os.getuid():
        print("disk: no full one without root, who may mount it", flush=True)
    for share in [dice.uniform(0.02, 0.9) for _ in range(0 if os.getuid() else max(1, trials // 4))]:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(share * need)}", "tmpfs", small], check=True)
        try:
            check(*forked(train_line(corpus, small / "run", STEPS)))
            subprocess.run(["mount", "-o", "remount,size=1g", small], check=True)
            check(*forked(train_line(corpus, small / "run", STEPS)), allowed=(0,))
            yield "" if weights(small / "run") == weights(straight) else f"a disk of {share:.2f}: other weights"
        finally:
            subprocess.run(["umount", small], check=True)
    every = [refused, straight, *straight.rglob("*")]
    for path in every:
        path.chmod(0o555 if path.is_dir() else 0o444)
    lines = [train_line(corpus, refused / "run", 1), train_line(corpus, straight, MORE), ["export", straight, refused / "model"]]
    before = {path: path.stat().st_mtime_ns for path in every}
    for line in lines:
        check(*forked(line, powerless), allowed=(2,))
        yield "" if before == {path: path.stat().st_mtime_ns for path in every} else "a folder that is read alone was changed"
    for path in every:
        path.chmod(0o755)


def powerless() -> None:
    """Take from root what lets it write anywhere: all capabilities of this process."""
    if ctypes.CDLL(None, use_errno=True).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def fields(work: Path, corpus: Path, trials: int, dice: random.Random) -> Iterator[str]:
    from helpers.odd_values import VALUES, attempt
    from helpers.odd_values import fields as paths
    from imp_ds.recipes import get_recipe

    run = get_recipe("digits_debug")
    for path in paths(run):
        for value in VALUES:
            try:
                attempt(run, path, value)
                yield ""
            except Exception as error:
                yield f"{'.'.join(map(str, path))} = {value[:30]}: {type(error).__name__}: {str(error)[:200]}"


PARTS = {part.__name__: part for part in (fields, models, runs, disk, kills)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # once for all processes that are forked
    upcycle = "commands.upcycle_command"
    for name in ("commands.predict", "commands.evaluate", "commands.exported_model", "train.trainer", upcycle):
        import_module(f"imp_ds.{name}")
    from imp_ds.data.digits import build

    faults = 0
    with tempfile.TemporaryDirectory(prefix="damage-") as folder, contextlib.redirect_stdout(sys.stderr):
        corpus = Path(folder) / "digits"
        build(corpus, scale=0.03)
        for name in options.parts:
            begun, tried = time.monotonic(), 0
            (Path(folder) / name).mkdir()
            try:
                for found in PARTS[name](Path(folder) / name, corpus, options.trials, random.Random(options.seed)):
                    tried, faults = tried + 1, faults + bool(found)
                    print(f"{name}: {found}" if found else "", end="\n" if found else "", flush=True)
            except Fault as fault:
                faults += 1
                print(f"{name}, after {tried}: {fault}", flush=True)
            print(f"{name}: {tried} tried in {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
