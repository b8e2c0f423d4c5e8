"""One rank of tests/distributed/test_exactness.py and test_micro_batches.py: the worker of benchmarks/exactness.py."""

import os
from pathlib import Path

from benchmarks.exact import worker
from benchmarks.exact.cases import Case
from imp_ds.train.engine.engine import Engine, start_process_group


def references(folder: str, cases: list[Case]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    worker.write_references(Path(folder), cases)
    worker.leave()


def measure(folder: str, cases: list[Case], remedy: bool = True) -> None:
    """Results as lines of results_{ranks}.jsonl. Without the remedy, the gradients that DeepSpeed keeps are applied again."""
    device = start_process_group(60)
    if not remedy:
        Engine._clear_stale_gradients = lambda self: None
    worker.run_cases(Path(folder), cases, device)
    worker.leave()
