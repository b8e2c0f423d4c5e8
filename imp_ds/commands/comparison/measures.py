"""What is read of a finished run: its scores, parameters, times, and how its tasks interfere; and which of it is shown."""

import math
import statistics

from imp_ds.commands.comparison.across import speech_to_images
from imp_ds.commands.comparison.job import AGAIN
from imp_ds.commands.comparison.jobs import INTERFERENCE, RouterJob
from imp_ds.commands.comparison.measure import LESS, MORE, Measure
from imp_ds.errors import UserError
from imp_ds.families.imp.costs.cost import count_parameters, parameter_sizes
from imp_ds.json_files import read_json
from imp_ds.train.run_folder import RESULTS
from imp_ds.train.trained_run import TrainedRun, open_run
from imp_ds.written_files import write_json

ACROSS = "speech_to_images.json"

COST = (
    Measure("time/step", "training step", "ms", 1e3, 1, LESS),
    Measure("time/encode", "inference", "ms", 1e3, 1, LESS),
    Measure("parameters/trained", "parameters trained", "M", 1e-6, 2, LESS),
    Measure("parameters/served", "parameters served", "M", 1e-6, 2, LESS),
    Measure("parameters/active", "parameters active", "M", 1e-6, 2, LESS),
)
SKILL = (
    Measure("zero_shot/image_digit/top1", "images: digit named", "%", 100, 1, MORE),
    Measure("zero_shot/speech_digit/top1", "speech: digit named", "%", 100, 1, MORE),
    Measure("captioning/image_caption/bleu4", "image captions: BLEU-4", "%", 100, 1, MORE),
    Measure("captioning/image_caption/cider", "image captions: CIDEr", "", 1, 2, MORE),
    Measure("masked_language/hidden_words/accuracy", "hidden words found", "%", 100, 1, MORE),
    Measure("masked_language/hidden_words/perplexity", "hidden words: perplexity", "", 1, 2, LESS),
    Measure("interference/with_experts", "interference, layers with experts", "", 1, 3),
    Measure("interference/shared", "interference, shared layers", "", 1, 3),
)
NEVER_TRAINED = (
    Measure("captioning/film_caption/bleu4", "video captions: BLEU-4", "%", 100, 1, MORE),
    Measure("captioning/film_caption/cider", "video captions: CIDEr", "", 1, 2, MORE),
    Measure("retrieval/speech_to_image/R@1", "speech to images: nearest is right", "%", 100, 1, MORE),
)
SECTIONS = {"What it costs": COST, "What it learns": SKILL, "What it was never trained on": NEVER_TRAINED}


def job_values(job: RouterJob, times: dict, conditional_layers: list[int]) -> dict[str, float]:
    """All numbers of a finished job by flat names.

    times: of its router, as `timing.py` gives them. conditional_layers: those that have experts in sparse models.
    """
    trained = open_run(job.folder)
    config = trained.run.model.to_config(len(trained.processor.tokenizer), trained.run.tasks, trained.processor.tokenizer)
    counted = count_parameters(config, parameter_sizes(config))
    found = read_json(job.folder / RESULTS, dict, AGAIN) | _across(job, trained)
    found |= {
        "parameters/trained": counted.total, "parameters/active": counted.active + counted.rest,
        "parameters/served": times["parameters"], "time/step": times["step_s"], "time/encode": times["encode_s"],
    }  # fmt: skip
    for kind in ("train", "inference"):
        found |= {f"time/{kind}/{task}": seconds for task, seconds in times[f"{kind}_s"].items()}
    measured = read_json(job.folder / INTERFERENCE, dict, AGAIN)
    try:
        return found | between_tasks(measured["weights"], conditional_layers)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        got = f"{job.folder / INTERFERENCE}: {type(error).__name__}: {error}"
        raise UserError("what was measured of a run is damaged", got=got, fix=AGAIN) from None


def _across(job: RouterJob, trained: TrainedRun) -> dict[str, float]:
    """As it was written, or measured now."""
    path = job.folder / ACROSS
    if not path.is_file():
        write_json(path, speech_to_images(trained))
    return read_json(path, dict, AGAIN)


def between_tasks(weights: dict[str, dict], conditional_layers: list[int]) -> dict[str, float]:
    """The mean interference between different tasks, over the layers that have experts in sparse models, and over the others.

    weights: of interference.json, by the parameters' names. The layers are the same for all routers, dense or not. A number that
    is not finite makes its mean not a number.
    """
    parts = {"with_experts": [], "shared": []}
    for name, measured in weights.items():
        layer = int(name.split(".")[2])
        values = [
            math.nan if value is None else value
            for row, line in enumerate(measured["matrix"])
            for column, value in enumerate(line)
            if row != column
        ]
        parts["with_experts" if layer in conditional_layers else "shared"].append(statistics.fmean(values))
    return {f"interference/{part}": statistics.fmean(found) for part, found in parts.items() if found}
