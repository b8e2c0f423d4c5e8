"""One rank of tests/distributed/test_likelihood_ranks.py: answers among candidates on two ranks against one process.

Shapes: B samples of the global batch, L tokens of a text.
"""

import json
from pathlib import Path

import alternating_worker

from helpers import small_run
from helpers.likelihood_run import likelihood_batch, likelihood_config, likelihood_run
from helpers.ranks import leave
from imp_ds.parallel.groups import is_main
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import start_process_group

# file, ranks that share the experts, micro-batches
CASES = [("zero2", 1, 1), ("zero2", 2, 2), ("zero3", 1, 1)]
def compare_all(out: str) -> None:
    """Writes, by case, what `alternating_worker.compare` gives."""
    small_run.make_config = alternating_worker.make_config = likelihood_config
    expected = alternating_worker.reference(likelihood_run(), likelihood_batch)
    device = start_process_group(60)
    results = {}
    for name, ep_size, micro_batches in CASES:
        ds = ds_config.load(ds_config.FOLDER / f"cpu_{name}.json")
        found = alternating_worker.compare(likelihood_run(ep_size), ds, expected, device, likelihood_batch, micro_batches)
        results[f"{name} {ep_size} {micro_batches}"] = found
    if is_main():
        Path(out).write_text(json.dumps(results))
    leave()
