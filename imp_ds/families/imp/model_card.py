"""What the card of an exported model of IMP says of it: what it is, how to load it, what was tuned."""

from pathlib import Path

from imp_ds.config import RunConfig
from imp_ds.evaluation.metric import Metric, by_name
from imp_ds.families.card import BEFORE, Card, table
from imp_ds.modalities.modality import TEXT, get_modality
from imp_ds.models.imp.conditions import task_conditions, task_sides
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import ObjectiveRecord
from imp_ds.registry import MODALITIES

_ABOUT = """\
One encoder for images, videos, audio and text, trained by alternating gradient descent: every optimizer step belonged to one
task (IMP, [arXiv 2305.06324](https://arxiv.org/abs/2305.06324)). {experts} It was trained with `imp_ds` on DeepSpeed.
"""
_LOADING = """\
```python
import imp_ds  # makes the Auto classes know the model
import numpy as np
from transformers import AutoModel, AutoProcessor

folder = {folder!r}
model = AutoModel.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)

image = np.zeros(({height}, {width}, 3), dtype=np.uint8)  # or a PIL image; for videos: videos=, for audio: audio=, sampling_rate=
{comparing}```
"""
_COMPARING = """\
inputs = processor({example}, text=["a caption", "another caption"])
embeddings = model(**inputs{task}).embeddings
scores = embeddings["{modality}_to_text"] @ embeddings["text_to_{modality}"].T  # one row for each sample
"""
_SCORED = "zero-shot by prompts, retrieval against the whole split, classes and hidden words by heads, captions by beam search"
_ANSWERING = """
```python
from imp_ds import ImpForPreTraining

chooser = ImpForPreTraining.from_pretrained(folder).eval()
chances = chooser.answer({task!r}, **processor({inputs}))  # one row for each input
names = chooser.config.objectives[{task!r}]["objectives"][{number}][{names!r}]
```
"""
_CAPTIONING = """
```python
from imp_ds import ImpForPreTraining

captioner = ImpForPreTraining.from_pretrained(folder).eval()
words = captioner.generate_captions({task}**processor({inputs}), beam=4)
captions = processor.batch_decode(words, skip_special_tokens=True)
```
"""


def card(run: RunConfig, config: ImpConfig, results: list[Metric], folder: str = ".") -> Card:
    """What is said of a model of IMP. folder: what the example loads."""
    height, width = (4 * size for size in config.vision_patch[1:])
    loading = _LOADING.format(folder=folder, height=height, width=width, comparing=_comparing(run, config))
    layers = f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads"
    return Card(
        about=_ABOUT.format(experts=_experts(config)),
        tags=["imp", "multimodal", "contrastive"],
        sections=["## Loading", loading, *_answering(run), *_captioning(run)],
        shape=[("encoder", layers)],
        further=_tuning(run, config, results),
        scored=_SCORED,
        pipeline_tag="feature-extraction",
    )


def _experts(config: ImpConfig) -> str:
    conditional = [layer for layer in range(config.num_hidden_layers) if config.conditional_linears_of(layer)]
    layers = conditional or config.moe_layer_indices
    where = f"layers {', '.join(map(str, layers))} (of {config.num_hidden_layers}, from 0)"
    linears = f"the linear layers {', '.join(config.conditional_linears or ())} of {where}"
    if config.merged_conditions:
        names = ", ".join(f"`{name}`" for name in config.merged_conditions)
        return f"The encoder is dense; of {linears} it has a copy for each {config.gate}, merged from experts: {names}."
    if not config.num_experts:
        return "The encoder is dense."
    chosen = f"that a {config.gate} gate chooses"
    if config.conditional_linears:
        found = f"Each of {linears} has {config.num_experts} experts {chosen}."
    else:
        found = f"The feed-forward of {where} is a mixture of {config.num_experts} experts {chosen}."
    alone = " In `eval()` each example routes alone: its vector depends neither on the batch nor on padding."
    return found + (alone if config.tokens_compete else "")


def _task(config: ImpConfig, modality: str) -> str:
    """What the example has to say of the task, where the gates ask for it: one with the modality and texts, if there is one."""
    if config.gate not in ("task", "attribute") or not (config.num_experts or config.merged_conditions):
        return ""
    merged = config.merged_conditions
    served = [task for task in config.objectives if not merged or set(task_conditions(config, task)) <= set(merged)]
    sides = {task: task_sides(task, config.objectives[task]["objectives"]) for task in served}
    both = [task for task in served if {modality, TEXT} <= sides[task].inputs | sides[task].targets]
    return f", task={(both or served)[0]!r}"


def _comparing(run: RunConfig, config: ImpConfig) -> str:
    """How a sample is compared with texts by the projections of the pair, unless only likelihoods were learned: of the first
    modality that a task matches with texts; of a run without such a task, of the first that there is."""
    objectives = _objectives(run)
    by_likelihood = objectives and all(objective.scale_family for _, _, objective in objectives)
    if by_likelihood:
        return ""
    matched = [pair for _, _, objective in objectives for pair in objective.common_spaces() if TEXT in pair]
    found = [name for name in MODALITIES if name != TEXT and any(name in pair for pair in matched)]
    modality = (found or list(MODALITIES))[0]
    return _COMPARING.format(example=get_modality(modality).example, modality=modality, task=_task(config, modality))


def _objectives(run: RunConfig) -> list[tuple[str, int, ObjectiveRecord]]:
    """Of each objective its task, its position there, and itself."""
    return [(task.name, position, objective) for task in run.tasks for position, objective in enumerate(task.objectives)]


def _answering(run: RunConfig) -> list[str]:
    """How to have a class named, where a task of one modality does it; of several by the first one."""
    for task, position, objective in _objectives(run):
        answers = objective.answers()
        if answers is not None and len(answers.inputs) == 1 and not objective.needs().mask_at_answer:
            (read,) = answers.inputs
            return [_ANSWERING.format(task=task, number=position, inputs=get_modality(read).example, names=answers.field)]
    return []


def _tuning(run: RunConfig, config: ImpConfig, results: list[Metric]) -> list[str]:
    """What was tuned of which model, on how many samples, and what that model scored before; nothing for other runs."""
    tuned = [task for task in run.tasks if any(objective.is_tuned for objective in task.objectives)]
    if not tuned or run.train.init_from is None:
        return []
    (task,) = tuned
    what = "all of its weights" if run.train.trainable is None else "a linear head; the rest is as it was"
    if config.prompt_length:
        prompts = f"{config.prompt_length} prompts in each layer ({config.candidate_prompts})"
        what = f"{prompts}, the norms, a head; the rest is as it was"
    count = by_name(results).get(f"train/samples/{task.name}")
    drawn = f"{100 * task.source.fraction:g} % of each class" + ("" if count is None else f", {int(count):,} samples")
    before = [metric for metric in results if metric.name.startswith(BEFORE) and metric.shown is not None]
    rows = [(f"`{metric.name}`", metric.written()) for metric in before]
    return [
        "## Tuning",
        f"Tuned from `{Path(run.train.init_from).name}` on `{task.source.path}`, {drawn}. Trained: {what}.",
        *([f"Before it, the model scored:\n\n{table(('measure', 'value'), rows)}"] if rows else []),
    ]


def _captioning(run: RunConfig) -> list[str]:
    """How to generate captions, where a task does it; of several by the first one."""
    tasks = {task: objective.needs() for task, _, objective in _objectives(run) if objective.needs().target_ids}
    if not tasks:
        return []
    name, needs = next(iter(tasks.items()))
    read = next(modality for modality in MODALITIES if modality in needs.modalities and modality != TEXT)
    return [_CAPTIONING.format(task="" if len(tasks) == 1 else f"{name!r}, ", inputs=get_modality(read).example)]
