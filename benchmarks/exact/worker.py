"""One rank of the exactness matrix: trains cases one after another and measures how far each is from its reference.

    python -m benchmarks.exact.worker FOLDER references         (one plain process)
    deepspeed --num_gpus N --module benchmarks.exact.worker FOLDER cases

FOLDER holds cases_N.json; rank 0 adds a line to results_N.jsonl for each case.

Shapes: B samples of the global batch, T tokens of a call, E experts.
"""

import argparse
import gc
import json
import os
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all of it is about numbers, and the CPU's are float32 throughout

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.exact import reference
from benchmarks.exact.cases import AGAINST_FLOAT32, RATE, Case, engine_settings, make_batch, make_run
from helpers.small_run import full_parameters, make_engine, share
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.parallel.groups import is_main, rank, world_size
from imp_ds.train.engine import master_state
from imp_ds.train.engine.compilation import CompiledBlocks
from imp_ds.train.engine.engine import Engine, start_process_group

TIMEOUT_S = 300.0
SHAPES = 5  # two tasks of two modalities, one of one
_linear = F.linear


def write_references(folder: Path, cases: list[Case]) -> None:
    """The references of `cases`, each once: those of plain torch, then, as a world of one rank, those in bfloat16."""
    wanted = dict.fromkeys(case.reference for case in cases)
    for case in (case for case in wanted if not case.bf16):
        reference.save(folder, case, reference.plain_run(case))
    half = [case for case in wanted if case.bf16]
    if half:
        device = start_process_group(TIMEOUT_S)
        for case in half:
            reference.save(folder, case, run_alone(case, device))


def run_alone(case: Case, device: torch.device) -> dict[str, torch.Tensor]:
    engine, chosen = start(case, device)
    losses, norms = zip(*(train_step(engine, step, case) for step in range(case.steps)))
    return reference.summary(losses, norms, full_parameters(engine), chosen)


def start(case: Case, device: torch.device) -> tuple[Engine, list[torch.Tensor]]:
    """The engine of a case, and the list of its routers' decisions."""
    F.linear = _linear  # an engine at ZeRO 3 leaves its own there, which in bfloat16 rounds once more
    chosen = []
    engine = make_engine(make_run(case), engine_settings(case), device, prepare_model=partial(_prepare, case, chosen))
    return engine, chosen


def _prepare(case: Case, chosen: list[torch.Tensor], model: ImpForPreTraining) -> None:
    if case.variant == "checkpointing":
        model.gradient_checkpointing_enable()
    elif case.variant == "compile":
        CompiledBlocks(model, SHAPES)
    if case.variant in ("", AGAINST_FLOAT32) or case.random:  # the others call a router more than once, or where no hook may be
        reference.watch_choices(model, chosen)


def train_step(engine: Engine, step: int, case: Case) -> tuple[float, float]:
    """Loss of the global batch, and the norm of its gradient before clipping."""
    loss, _, _ = engine.forward(share(make_batch(step, case)), case.micro_batches)
    norm, accepted = engine.update(RATE)
    assert accepted
    mean = loss.detach().double()
    dist.all_reduce(mean)
    return mean.item() / world_size(), float(norm)


def compare(case: Case, folder: Path, device: torch.device) -> dict[str, float]:
    """Train a case. Largest differences from its reference, over all steps and ranks:

    What is frozen has no gradient to compare, and must be as it was.

    "loss": absolute, over the steps. "weight": absolute, after them. "norm": relative. "experts", "rest": of the gradient as it
    reached the optimizer, against float64, relative to its largest element. "choices": share of the routers' that differ.
    """
    expected = reference.load(folder, case)
    engine, chosen = start(case, device)
    betas, losses, norms, experts, rest = make_run(case).optimizer.betas, [], [], 0.0, 0.0
    for step in range(case.steps):
        judged = step < reference.GRADIENT_STEPS and f"gradient_norm/{step}" in expected
        before = moments(engine) if judged else None
        loss, norm = train_step(engine, step, case)
        losses.append(loss)
        norms.append(norm)
        if judged:
            found = gradient_differences(before, moments(engine), betas[0], expected, step, case.clip)
            experts, rest = max(experts, found[0]), max(rest, found[1])
    norms, weights = torch.tensor(norms, dtype=torch.float64), full_parameters(engine)
    for name, parameter in engine.model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(weights[name], expected[f"weight/{name}"]), f"{name} is frozen, and has changed"
    found = {
        "loss": (torch.tensor(losses, dtype=torch.float64) - expected["losses"]).abs().max().item(),
        "norm": ((norms - expected["norms"]) / expected["norms"]).abs().max().item(),
        "weight": max((value - expected[f"weight/{name}"]).abs().max().item() for name, value in weights.items()),
    }
    if not case.bf16 and not case.random:
        trained = {".experts." in name for name, p in engine.model.named_parameters() if p.requires_grad}
        found |= {name: value for name, kind, value in (("experts", True, experts), ("rest", False, rest)) if kind in trained}
    return found | ({"choices": choices_that_differ(chosen, expected)} if chosen else {})


def moments(engine: Engine) -> list[tuple[master_state.Slice, torch.Tensor]]:
    """This rank's part of Adam's first moments, copied; all ranks together have every element once."""
    parts = [(part, part.tensors["exp_avg"].clone()) for part in master_state.owned_slices(engine)]
    elements = torch.tensor([sum(part.numel for part, _ in parts)])
    dist.all_reduce(elements)
    full_shapes = master_state.full_parameters(engine.model)
    trained = [name for name, parameter in engine.model.named_parameters() if parameter.requires_grad]
    full = {name: torch.Size(full_shapes[name][0]).numel() for name in trained}
    assert elements.item() == sum(full.values()), f"{elements.item()} elements on all ranks, not {sum(full.values())}"
    return parts


def gradient_differences(before: list, after: list, beta: float, expected: dict, step: int, clip: float) -> tuple[float, float]:
    """Experts and the rest: m = beta * m_before + (1 - beta) * gradient shows what gradient the optimizer was given."""
    norm = expected[f"gradient_norm/{step}"].item()
    scale = min(1.0, clip / norm) if clip else 1.0
    worst, largest = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for name in (key.removeprefix(f"gradient/{step}/") for key in expected if key.startswith(f"gradient/{step}/")):
        kind = 0 if ".experts." in name else 1
        largest[kind] = max(largest[kind], scale * expected[f"gradient/{step}/{name}"].abs().max())
    for (part, m_before), (_, m_after) in zip(before, after):
        kind = 0 if ".experts." in part.name else 1
        wanted = scale * expected[f"gradient/{step}/{part.name}"].flatten()[part.start : part.start + part.numel]
        gradient = (m_after.double() - beta * m_before.double()) / (1 - beta)
        worst[kind] = max(worst[kind], (gradient - wanted).abs().max())
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return tuple((worst / largest).tolist())


def choices_that_differ(chosen: list[torch.Tensor], expected: dict) -> float:
    """Of all choices of the routers, by all ranks and in all steps, those that the reference did not make."""
    wanted = [expected[f"chosen/{call}"].chunk(world_size())[rank()] for call in range(len(chosen))]
    counts = torch.tensor([sum((a & ~b).sum() for a, b in zip(chosen, wanted)), sum(a.sum() for a in chosen)])
    dist.all_reduce(counts)
    return counts[0].item() / counts[1].item()


def run_cases(folder: Path, cases: list[Case], device: torch.device) -> None:
    for case in cases:
        begun = time.perf_counter()
        found = compare(case, folder, device)
        gc.collect()  # engines hold themselves in circles
        if is_main():
            line = asdict(case) | {"found": found, "seconds": time.perf_counter() - begun}
            with (folder / f"results_{world_size()}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def read_cases(file: Path) -> list[Case]:
    return [Case(**entry) for entry in json.loads(file.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=("references", "cases"))
    parser.add_argument("--local_rank", type=int)  # the launcher's; the environment has it too
    options = parser.parse_args()
    if options.part == "references":
        files = sorted(options.folder.glob("cases_*.json"))
        write_references(options.folder, [case for file in files for case in read_cases(file)])
    else:
        device = start_process_group(TIMEOUT_S)
        run_cases(options.folder, read_cases(options.folder / f"cases_{world_size()}.json"), device)
    leave()


def leave() -> None:
    """End this process, after all ranks are done."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # a normal end of many engines sometimes aborts in their threads, after all is done


if __name__ == "__main__":
    main()
