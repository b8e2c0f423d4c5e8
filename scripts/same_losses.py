"""Whether two runs had the same losses, bit for bit: python scripts/same_losses.py A/metrics.jsonl B/metrics.jsonl STEPS

Both must have recorded each of the steps 1 to STEPS once. Says so in one line, or where they part; exit code 1 then.
"""

import argparse
import json
import sys
from pathlib import Path


def losses(path: str) -> list[tuple[int, dict]]:
    """(step, {task: loss}) of each training record. JSON keeps each bit of a number."""
    records = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return [(r["step"], {name: task["loss"] for name, task in r["tasks"].items()}) for r in records if r["kind"] == "train"]


def difference(first: list, second: list, steps: int) -> str | None:
    """Where two records part, or None."""
    for name, record in (("first", first), ("second", second)):
        if [step for step, _ in record] != list(range(1, steps + 1)):
            return f"the {name} run did not record each of {steps} steps once"
    return next((f"step {step}: losses {a} and {b}" for (step, a), (_, b) in zip(first, second) if a != b), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, metavar="metrics.jsonl")
    parser.add_argument("steps", type=int)
    given = parser.parse_args()
    found = difference(*map(losses, given.runs), given.steps)
    print(found or f"{given.steps} steps with the same losses, bit for bit")
    sys.exit(found is not None)


if __name__ == "__main__":
    main()
