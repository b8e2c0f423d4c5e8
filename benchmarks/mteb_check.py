"""Whether an exported model passes mteb's conformance test, counted by modality, and scores alike at batch sizes 1 and 8.

    python benchmarks/mteb_check.py MODEL [--data CORPUS]

mteb counts a task that it skips, for want of torchcodec, as passed: here it is counted apart. With --data the zero-shot
evaluations of the model's run go through mteb as tasks too, and have to give the accuracy of `imp_ds eval`. Needs
`pip install "imp_ds[eval]"` and no network; about a minute on one core, and three with --data. Writes a Markdown table to the
terminal.
"""

import argparse
import datetime
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from imp_ds.commands.evaluate import evaluate, measured_run  # noqa: E402
from imp_ds.evaluation.harness import MtebModel  # noqa: E402
from imp_ds.evaluation.harness.suites import run_own  # noqa: E402
from imp_ds.evaluation.split import Split  # noqa: E402

KINDS = ("text", "image", "audio", "video")


def conformance(model: MtebModel) -> list[str]:
    """A row for each modality: mock tasks that passed, failed, and were skipped with the reason."""
    import mteb
    from mteb.mocks import ALL_MOCK_TASK_TEST_GRID

    found = mteb.mock_run(model)
    modalities = {task.metadata.name: task.metadata.modalities for task in ALL_MOCK_TASK_TEST_GRID}
    rows = []
    for kind in KINDS:
        own = {name: status for name, status in found.items() if kind in modalities[name] and status is not None}
        errors = {name: status.exception for name, status in own.items() if hasattr(status, "exception")}
        skipped = {name: text for name, text in errors.items() if "torchcodec" in text}
        failed = sorted(errors.keys() - skipped.keys())
        why = ", need torchcodec" if skipped else ""
        ran = len(own) - len(skipped)
        rows.append(f"| {kind} | {ran - len(failed)} of {ran} | {', '.join(failed) or 0} | {len(skipped)}{why} |")
    return ["| modality | passed | failed | skipped |", "| --- | ---: | --- | --- |", *rows]


def own_tasks(model: MtebModel, folder: Path, data: Path, split: str) -> list[str]:
    """A row for each zero-shot evaluation: through mteb at batch sizes 1 and 8, and by `imp_ds eval`."""
    run, _, _ = measured_run(folder, data, None, [])
    scores = [run_own(model, Split(run, model.processor, split), Path("unused"), batch_size=size) for size in (1, 8)]
    expected = evaluate(folder, data, split)
    rows = []
    for one, eight in zip(*scores):
        name = one.task.removeprefix("imp_ds_")
        rows.append(f"| {name} | {one.value:.6f} | {eight.value:.6f} | {expected[f'zero_shot/{name}/top1']:.6f} |")
    return ["| evaluation | mteb, batches of 1 | mteb, batches of 8 | imp_ds eval |", "| --- | ---: | ---: | ---: |", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    model = MtebModel(given.model)
    lines = conformance(model)
    if given.data is not None:
        lines += ["", *own_tasks(model, given.model, given.data, given.split)]
    names = ", ".join(f"{name} {version(name)}" for name in ("mteb", "sentence-transformers", "torch", "transformers"))
    print("\n".join(["", f"{datetime.date.today().isoformat()}, {names}", "", *lines]))


if __name__ == "__main__":
    main()
