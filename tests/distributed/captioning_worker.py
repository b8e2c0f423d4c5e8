"""One rank of tests/distributed/test_captioning_ranks.py: captions on two ranks against one process without DeepSpeed.

Shapes: B samples of the global batch, T words of a caption.
"""

import json
from pathlib import Path

import torch
from alternating_worker import compare, reference

from helpers.caption_run import GATES, caption_batch, caption_run
from helpers.pictures import CAPTIONS, TASK, TOKENIZER, pictures, small_model
from helpers.ranks import leave
from imp_ds.evaluation import by_name, evaluate
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.evaluation.captioning import CaptioningEvaluator
from imp_ds.parallel.groups import is_main, rank, world_size
from imp_ds.tasks import Batch
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import start_process_group

# gate, file, ep_size, micro-batches, checkpointing
CASES = [("attribute", "zero2", 1, 1, False), ("attribute", "zero3", 2, 2, False), ("token", "zero2", 2, 2, True)]
ROWS = [3, 0, 12, 7, 9, 1, 14]  # a number that two ranks cannot share in equal parts


def measured() -> dict[str, float]:
    """All values of an evaluator, whose rows are dealt to the ranks in turn, two by two."""
    dealt = [ROWS[first : first + 2] for first in range(2 * rank(), len(ROWS), 2 * world_size())]

    def entries(rows: list[int]) -> Batch:
        filled = (rows * 2)[:2]
        targets = {"index": torch.tensor(filled), "valid": torch.arange(2) < len(rows)}
        return Batch("evaluation", {"vision": pictures(filled)}, targets)

    record = Evaluation(name="pictures", modality="vision", source=TASK.source, views=TASK.views, captioner="captions", beam=3)
    references = [[caption] for caption in CAPTIONS]
    evaluator = CaptioningEvaluator(record, TASK, lambda: map(entries, dealt), references, TOKENIZER)
    return by_name(evaluate(small_model(), [evaluator])) | {"generated": evaluator.generated}


def compare_all(out: str) -> None:
    """Writes, by case, what `alternating_worker.compare` gives; and what the evaluator gives on one rank and on both."""
    expected, alone = {gate: reference(caption_run(gate), caption_batch) for gate in GATES}, measured()
    device = start_process_group(60)
    results = {}
    for gate, name, ep_size, micro_batches, checkpointing in CASES:
        ds = ds_config.load(ds_config.FOLDER / f"cpu_{name}.json")
        prepare = (lambda model: model.gradient_checkpointing_enable()) if checkpointing else None
        run = caption_run(gate, ep_size)
        results[f"{gate} {name}"] = compare(run, ds, expected[gate], device, caption_batch, micro_batches, prepare)
    results["evaluated"] = [alone, measured()]
    if is_main():
        Path(out).write_text(json.dumps(results))
    leave()
