"""Is a mixture of specialists worth it? The last stage of the recipe `talk` against other models that are trained as long.

    bash scripts/talk.sh                                  # first: the stages that all models of the study start from
    python benchmarks/talk_study.py runs/talk study       # some 25 minutes for each seed, on two cores

Data, steps, batches, rates and connectors are those of the stage `moe`. What differs:

    specialists   the stage as it is: four experts, from the language model and three specialists
    equal         four experts that are copies of the language model's feed-forwards
    dense         no experts: LoRA of the same rank on the language model
    dense_wide    no experts: LoRA of a rank that trains as many parameters as `specialists`
    image, video, speech   the specialists as they are, asked about everything

Seeds change the draws of tasks, the new weights and the order of samples. The runs stay in the output folder: the same command
again goes on where it stopped. Writes table.json and README.md there.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from imp_ds.config import RunConfig
from imp_ds.recipes import get_recipe
from imp_ds.recipes.talk import FEED_FORWARDS, SPECIALISTS

SCORE = "answers/{}/exact_match"
TRAINED = ("specialists", "equal", "dense", "dense_wide")
WIDE_RANK = 45  # 10,240 parameters for each rank: 460,800, where `specialists` trains 460,800 beside the connectors


def model_of(name: str, stages: Path, seed: int) -> RunConfig:
    """The run of a model of the study."""
    run = get_recipe("talk").run_of("moe", stages)
    run.name, run.train.seed, run.data.seed = f"study_{name}_{seed}", seed, seed
    for evaluation in run.evaluations:
        evaluation.options |= {"blind": False, "shuffled": False}
    if name == "equal":
        run.model.num_experts, run.model.experts = len(run.model.experts), {}
    elif name.startswith("dense"):
        run.model.experts = {}
        run.model.lora.target_parameters = []
        run.model.lora.target_modules += FEED_FORWARDS
        run.train.trainable = [pattern for pattern in run.train.trainable if "router" not in pattern]
        if name == "dense_wide":
            run.model.lora.r, run.model.lora.lora_alpha = WIDE_RANK, 2 * WIDE_RANK
    return run


def train(name: str, stages: Path, out: Path, seed: int) -> dict:
    """The scores of a model, trained now where it is not yet."""
    folder = out / f"{name}_{seed}"
    if not (folder / "results.json").is_file():
        recipe = out / f"{name}_{seed}.json"
        model_of(name, stages, seed).save(recipe)
        command = ["deepspeed", "--num_gpus", "2", "--module", "imp_ds", "train", str(recipe), "--output_dir", str(folder)]
        called([*command, "--resume", "auto"])
    return json.loads((folder / "results.json").read_text())


def asked(name: str, stages: Path, out: Path) -> dict:
    """The scores of a specialist on all tasks."""
    results = out / f"{name}.json"
    if not results.is_file():
        recipe = out / "asked.json"
        model_of("specialists", stages, 0).save(recipe)
        model = str(stages / name / "model")
        called(
            [sys.executable, "-m", "imp_ds", "eval", model, "--recipe", str(recipe), "--split", "test", "--output", str(results)]
        )
    return json.loads(results.read_text())


def called(command: list[str]) -> None:
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, timeout=3600)


def table(scores: dict[str, list[dict]], tasks: list[str]) -> str:
    """A row for each task, a column for each model: percent, the mean over seeds and the deviation where there are several."""
    lines = ["| task | " + " | ".join(scores) + " |", "| --- |" + " ---: |" * len(scores)]
    for task in [*tasks, "mean"]:
        cells = []
        for found in scores.values():
            values = [100 * (mean(one[t] for t in tasks) if task == "mean" else one[task]) for one in found]
            cells.append(f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", type=Path, help="output folder of the recipe `talk`")
    parser.add_argument("out", type=Path, help="where the runs and the table go")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tasks = [e.name for e in get_recipe("talk").stage("moe").run.evaluations if e.options["metric"] == "exact_match"]
    kept = lambda found: {task: found[SCORE.format(task)] for task in tasks}  # noqa: E731
    scores: dict[str, list[dict]] = {name: [] for name in (*TRAINED, *SPECIALISTS)}
    for name in SPECIALISTS:
        scores[name] = [kept(asked(name, arguments.stages, arguments.out))]
    for seed in range(arguments.seeds):
        for name in TRAINED:
            scores[name].append(kept(train(name, arguments.stages, arguments.out, seed)))
        (arguments.out / "table.json").write_text(json.dumps(scores, indent=1) + "\n")
        (arguments.out / "README.md").write_text(table({n: s for n, s in scores.items() if s}, tasks) + "\n")
    print(f"wrote {arguments.out / 'README.md'} and {arguments.out / 'table.json'}")


if __name__ == "__main__":
    main()
