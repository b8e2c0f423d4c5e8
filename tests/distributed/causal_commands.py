"""One process of tests/distributed/test_causal_run.py: a run of another family is planned, exported, loaded and scored."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

from helpers.ranks import command


def use(folder: str, runs: list[str]) -> None:
    """Export each run as FOLDER/RUN_model; of the first one write what loads from there as facts.json, and evaluate it."""
    from imp_ds.commands.export import export

    folder = Path(folder)
    sys.path.insert(0, str(folder))
    _run("plan", folder / "causal_recipe.py", "--gpus", "4", "--set", "train.ep_size=2")
    for run in runs:
        export(folder / run, folder / f"{run}_model")
    from helpers.causal_model import CausalModel, text_batch

    model, loading = CausalModel.from_pretrained(folder / f"{runs[0]}_model", output_loading_info=True)
    scale, missing = model.logit_scale.item(), sorted(loading["missing_keys"])
    with torch.no_grad():
        loss = model.eval()(text_batch(0)).loss.item()
    facts = {"scale": scale, "missing": missing, "loss": loss, "counted": _counted(folder / runs[0])}
    (folder / "facts.json").write_text(json.dumps(facts))
    scored = ("--split", "validation", "--output", folder / "scores.json")
    _run("eval", folder / f"{runs[0]}_model", "--import", "causal_family", *scored)


def _counted(run_dir: Path) -> dict:
    """Costs that nobody worked out for this family."""
    from imp_ds.families import family_of
    from imp_ds.train.run_folder import load_run

    run = load_run(run_dir)
    cost, task = family_of(run).cost(run), run.tasks[0]
    found = cost.parameters(cost.sizes())
    facts = {"words": run.data.vocab_size, "flops": cost.flops(task, 4), "exchanges": cost.exchanges(task, 4, 2, 4)}
    return facts | {"active": found.active, "encoder": found.encoder}


def _run(*arguments) -> None:
    """`imp_ds ARGUMENTS` in this process."""
    with suppress(SystemExit):
        command(*arguments)
