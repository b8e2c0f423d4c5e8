"""Every combination of ranks, expert parallelism, ZeRO stage, offload, router and precision against one process.

    python benchmarks/exactness.py [--ranks 1 2 4] [--quick] [--out docs/exactness.md]

Each number of ranks is one start of the `deepspeed` launcher, whose processes train all combinations in turn, 20 steps of three
alternating tasks each. The exit code is 1 when a combination that is not refused differs by more than its bound, or does not
end. Runs on the CPU, one thread for each rank, whatever else the machine has. All of it took 46 minutes on two cores that other
work shared.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# the small run that is trained is the one of the tests
PATHS = [str(ROOT), str(ROOT / "tests")]
sys.path[:0] = PATHS

from benchmarks.exact import report  # noqa: E402
from benchmarks.exact.bounds import Result, failures  # noqa: E402
from benchmarks.exact.cases import Case, matrix, quick, refusal, variants  # noqa: E402
from imp_ds.parallel.launch import free_port  # noqa: E402

WORKER = "benchmarks.exact.worker"
STALL_S = 900  # without another result: longer than the ranks wait for each other, and than a compiler takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], choices=(1, 2, 4))
    parser.add_argument("--quick", action="store_true", help="about a tenth of the combinations, on at most two ranks")
    parser.add_argument("--out", type=Path, help="write the tables to this file instead of printing them")
    options = parser.parse_args()
    begun = time.perf_counter()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        cases = {ranks: chosen(ranks, options.quick) for ranks in sorted(set(options.ranks))}
        results = run(Path(folder), {ranks: found for ranks, found in cases.items() if found})
    command = " ".join(["python benchmarks/exactness.py", *sys.argv[1:]])
    text = report.page(results, command, time.perf_counter() - begun)
    if options.out:
        options.out.write_text(text)
        print(f"written to {options.out}")
    else:
        print(text)
    bad = failures(results)
    for result in bad:
        print(f"FAILED: {result.case}: {result.shown()}", file=sys.stderr)
    raise SystemExit(1 if bad else 0)


def chosen(ranks: int, fast: bool) -> list[Case]:
    cases = matrix(ranks) + variants(ranks)
    return quick(cases) if fast else cases


def run(folder: Path, cases: dict[int, list[Case]]) -> list[Result]:
    """All cases, by number of ranks: refused, or measured, or, when its processes died, neither."""
    refused = {case: refusal(case) for found in cases.values() for case in found}
    for ranks, found in cases.items():
        accepted = [asdict(case) for case in found if refused[case] is None]
        (folder / f"cases_{ranks}.json").write_text(json.dumps(accepted))
    print("references", flush=True)
    if start([sys.executable, "-m", WORKER, folder, "references"], folder / "references.log", lambda: None):
        raise SystemExit("there is nothing to compare with")
    for ranks, found in cases.items():
        wanted = [case for case in found if refused[case] is None]
        done = Progress(folder / f"results_{ranks}.jsonl", len(wanted))
        # the interpreter's own launcher, wherever it is installed
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", ranks, "--master_port", free_port()]
        start([*launcher, "--module", WORKER, folder, "cases"], folder / f"ranks_{ranks}.log", done.show)
    measured = read(folder)
    return [Result(case, refused[case], *measured.get(case, (None, 0.0))) for found in cases.values() for case in found]


class Progress:
    """A line for each result as it comes."""

    def __init__(self, file: Path, total: int):
        self.file, self.total, self.shown = file, total, 0

    def show(self) -> int:
        """How many there are by now."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        for number, line in list(enumerate(lines, 1))[self.shown :]:
            result = parse(line)
            print(f"{number}/{self.total}  {result.case}: {result.shown()}", flush=True)
        self.shown = len(lines)
        return self.shown


def start(command: list, log: Path, progress: Callable) -> int:
    """Run a command to its end, with what it prints in `log`: its exit code. It is killed with its children when `progress()`
    stands still."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environ["PYTHONPATH"] = os.pathsep.join([*PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        last, moved = progress(), time.monotonic()
        while child.poll() is None and time.monotonic() - moved < STALL_S:
            time.sleep(0.5)
            now = progress()
            if now != last:
                last, moved = now, time.monotonic()
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(30)
    progress()
    if child.returncode:
        tail = log.read_text(errors="replace")[-4000:]
        print(f"{tail}\n{' '.join(map(str, command))} ended with {child.returncode}", file=sys.stderr, flush=True)
    return child.returncode


def read(folder: Path) -> dict[Case, tuple[dict, float]]:
    """What was measured, and how many seconds it took."""
    lines = [line for file in sorted(folder.glob("results_*.jsonl")) for line in file.read_text().splitlines()]
    return {result.case: (result.found, result.seconds) for result in map(parse, lines)}


def parse(line: str) -> Result:
    entry = json.loads(line)
    case = Case(**{field.name: entry[field.name] for field in fields(Case)})
    return Result(case, None, entry["found"], entry["seconds"])


if __name__ == "__main__":
    main()
