"""One rank of tests/distributed/test_masked_language_ranks.py: hidden words on two ranks against one process without DeepSpeed.

Shapes: B samples of the global batch, L tokens of a text.
"""

import json
from pathlib import Path

from alternating_worker import compare, reference

from helpers.ranks import leave
from helpers.words_run import words_batch, words_run
from imp_ds.parallel.groups import is_main
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import start_process_group

CASES = [("zero2", 1, False), ("zero2", 2, False), ("zero3", 1, False), ("zero3", 2, True)]  # file, micro-batches, checkpointing


def compare_all(out: str) -> None:
    """Writes, by case, what `alternating_worker.compare` gives."""
    expected = reference(words_run(), words_batch)
    device = start_process_group(60)
    results = {}
    for name, micro_batches, checkpointing in CASES:
        ds = ds_config.load(ds_config.FOLDER / f"cpu_{name}.json")
        prepare = (lambda model: model.gradient_checkpointing_enable()) if checkpointing else None
        results[f"{name} {micro_batches}"] = compare(words_run(), ds, expected, device, words_batch, micro_batches, prepare)
    if is_main():
        Path(out).write_text(json.dumps(results))
    leave()
