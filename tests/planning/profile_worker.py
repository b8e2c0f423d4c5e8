"""One rank of tests/planning/test_hardware_profile.py: what two ranks measure of the links between them, and of DeepSpeed."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from imp_ds.parallel.groups import is_main, rank
from imp_ds.planning.measure import engine as measure_engine
from imp_ds.planning.measure import kernels as measure
from imp_ds.train.engine.engine import start_process_group
from imp_ds.train.matrix_peak import matrix_peak


def measure_all(out: str) -> None:
    device = start_process_group(60)
    measure.LINK_S = 0.02  # a few calls
    links = measure.measure_links(device)
    # rank 1 is ten times as slow: the ranks still have to call equally often
    counted = []
    measure.seconds_of(lambda: (counted.append(0), dist.barrier()), device, 0.001 if rank() else 0.01)
    calls = torch.tensor([len(counted), -len(counted)])
    dist.all_reduce(calls, op=dist.ReduceOp.MAX)
    engine = {stage: measure_engine.engine_rate(stage, device, torch.float32, links).model_dump() for stage in (1, 3)}
    peak = matrix_peak(device, torch.float32, 0.01)
    if is_main():
        found = {name: link.model_dump() for name, link in links.items()}
        Path(out).write_text(json.dumps({"links": found, "calls": calls.tolist(), "engine": engine, "peak": peak}))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
