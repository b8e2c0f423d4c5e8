"""One rank of tests/distributed/test_contrastive.py: loss and gradients of the contrastive objective on its rows."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F

from imp_ds.objectives import Contrastive
from imp_ds.parallel.groups import rank, world_size
from imp_ds.train.engine.engine import start_process_group

ROWS, WIDTH = 12, 6
PAIRS = [("vision", "text"), ("vision", "audio"), ("audio", "text")]
TEMPERATURE = 0.3


def make_rows() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Embeddings of the joined batch in float64, and labels with repetitions inside and across the ranks' halves."""
    draw = torch.Generator().manual_seed(7)
    names = ("vision", "audio", "text")
    rows = {name: torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64) for name in names}
    return rows, torch.tensor([0, 1, 2, 0, 3, 4, 4, 0, 5, 1, 6, 7])


class Projector:
    """Stands for the encoder: every pair meets in the same space, on the unit sphere."""

    def project(self, pooled_BD: torch.Tensor, source: str, target: str) -> torch.Tensor:
        return F.normalize(pooled_BD, dim=-1)


def compute_all(folder: str, cases: dict[str, dict]) -> None:
    """What this rank found of each case, the fields of a record, in {name}_{rank}.pt."""
    start_process_group(30)
    for name, fields in cases.items():
        torch.save(compute(Contrastive(temperature=TEMPERATURE, **fields)), Path(folder) / f"{name}_{rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def compute(record: Contrastive) -> dict:
    """{"loss", "gradients": {modality: [B, D]}, "learned": {name of the objective's parameter: gradient}} of this rank."""
    joined, label = make_rows()
    own = {name: x.float().chunk(world_size())[rank()].clone().requires_grad_() for name, x in joined.items()}
    objective = record.build(None, {})
    encodings = {name: SimpleNamespace(pooled_BD=x) for name, x in own.items()}
    loss, _ = objective(Projector(), encodings, {"label": label.chunk(world_size())[rank()]})
    loss.backward()
    return {
        "loss": loss.item(),
        "gradients": {name: x.grad for name, x in own.items() if x.grad is not None},
        "learned": {name: parameter.grad for name, parameter in objective.temperatures.named_parameters()},
    }
