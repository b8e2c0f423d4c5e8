"""Tuning a trained model to one classification: which run that is.

Methods (Uni-Perceiver-MoE, arXiv 2206.04674; release, `moe_prompt_tuning/`):
    prompt    learned prompts in every layer, all norms and the head that starts at zero; everything else is frozen
    linear    a linear probe on what the frozen encoder gives
    full      everything, with that head
"""

import math
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from imp_ds.config import OptimizerSettings, RunConfig
from imp_ds.data.order.subset import class_fraction
from imp_ds.data.reader import Reader
from imp_ds.data.sources import labels, open_reader
from imp_ds.errors import UserError
from imp_ds.evaluation.split import class_prompts
from imp_ds.evaluation.zero_shot import ClassPrompts
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.initial_weights import check_encoder, stored_weight
from imp_ds.families.imp.model_folder import exported_config
from imp_ds.modalities.views import Views, data_settings
from imp_ds.objectives import NamedClasses
from imp_ds.objectives.registry import split_spec
from imp_ds.overrides import nearest
from imp_ds.tasks import Task

METHODS = ("prompt", "linear", "full")
# published: s_token_bias, norm, prompt_embed, deep_prompt_embedding, fc_prompt, similarity_weight, ln_post
TRAINABLE = {"prompt": ["*.prompts.*", "*norm*", "objectives.*"], "linear": ["objectives.*"], "full": None}
_WARMUP = 0.1  # of the steps


@dataclass(frozen=True)
class Tuning:
    """What is asked for. The defaults of the command are these.

    fraction: of each class's training samples. rate: the peak learning rate; None: that of the method.
    prompt_length: prompts of each layer, and candidate_prompts: "shared", or "separate": class names have prompts of their own;
        method prompt only.
    """

    method: str = "prompt"
    fraction: float = 0.01
    steps: int = 500
    batch_size: int = 32
    rate: float | None = None
    seed: int = 0
    prompt_length: int = 10
    candidate_prompts: str = "shared"

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError("unknown method", got=self.method, allowed=nearest(self.method, METHODS))
        if not 0 < self.fraction <= 1:
            raise UserError("the fraction is not a share of the samples", got=f"{self.fraction:g}", allowed="above 0, at most 1")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UserError("the learning rate is no rate", got=self.rate, allowed="above 0")
        if self.method == "prompt" and self.prompt_length < 1:
            raise UserError("prompt tuning without prompts", got=f"prompt_length = {self.prompt_length}", allowed="1 or more")

    @property
    def peak_rate(self) -> float:
        """Published for prompts 1e-4 to 1e-3, for full tuning 5e-6 to 2e-5, of models a hundred times larger than those that are
        trained on two cores."""
        return {"prompt": 1e-3, "linear": 1e-2, "full": 1e-4}[self.method] if self.rate is None else self.rate


def tuning_run(folder: Path, run: RunConfig, evaluation: str, tuning: Tuning, tokenizer, source: RunConfig) -> RunConfig:
    """The run that tunes the exported model in `folder`, of whose run the configuration is `run`, to what an evaluation measures.

    Args:
        evaluation: name of one of `source.evaluations`: what is classified, how it is seen, the classes and their prompts.
        tokenizer: the model's.
        source: where the evaluation and the data are named: `run` itself, or another configuration.

    Raises UserError for an evaluation that names no classes, a model that cannot compare with names, prompts that are too long,
    and a fraction that leaves a class without samples.
    """
    record, config = _evaluation(source, evaluation), exported_config(folder)
    reader = open_reader(source.data.root, record.source, "train", source.data)
    classes = class_prompts(source, record, reader)
    if classes is None or len(classes.names) < 2:
        fix = "set its `classes`, or source.label_names and `templates`"
        raise UserError(f"evaluation {record.name} names no classes to tune to", fix=fix)
    _check_samples(reader, classes, tuning)
    task = _task(record, _objective(folder, config, record, classes, tuning, tokenizer), tuning)
    settings = {name: getattr(run.data, name) for name in data_settings()}  # as the model was trained
    tuned = run.model_copy(
        update={
            "name": f"{run.name}_{tuning.method}",
            "model": _model(run, config, tuning),
            "data": source.data.model_copy(update={**settings, "tokenizer": str(folder), "seed": tuning.seed}),
            "tasks": [task],
            "evaluations": [record.model_copy(update={"task": task.name})],
            "train": _train(source, folder, tuning),
            "optimizer": _optimizer(source, tuning),
        }
    )
    tuned = RunConfig.model_validate(tuned.model_dump())
    check_encoder(config, tuned.model.to_config(config.vocab_size, tuned.tasks, tokenizer), folder)
    return tuned


def _task(record: Evaluation, objective: NamedClasses, tuning: Tuning) -> Task:
    """Of the evaluation's samples, on a part of them. It has the name of the task that gates got so far."""
    drawn = record.source.model_copy(update={"fraction": tuning.fraction})
    views = Views(**{record.modality: getattr(record.views, record.modality)})
    name = record.task or record.name
    return Task(name=name, source=drawn, views=views, objectives=[objective], batch_size=tuning.batch_size)


def _check_samples(reader: Reader, classes: ClassPrompts, tuning: Tuning) -> None:
    """Raise UserError when the fraction leaves a class without samples, or a label has no class."""
    label_N = labels(reader)
    if label_N.max(initial=-1) >= len(classes.names):
        raise UserError(
            f"{reader.name}: a label has no class name", got=int(label_N.max()), allowed=f"0 to {len(classes.names) - 1}",
            fix="let the evaluation's `classes` name the entry of classes.json that belongs to this source",
        )  # fmt: skip
    class_fraction(reader, label_N, tuning.fraction, tuning.seed, classes.names)


def _evaluation(source: RunConfig, name: str) -> Evaluation:
    found = {record.name: record for record in source.evaluations}
    if name not in found:
        raise UserError("unknown evaluation", got=name, allowed=nearest(name, found) if found else "none: the run names none")
    record = found[name]
    if record.modality == "text" or record.answer_at == "mask":
        raise UserError(
            f"evaluation {name}: what is tuned is the classification of images, videos and audio",
            got=f"modality = {record.modality}, answer_at = {record.answer_at}", 
            allowed="a modality other than text, read at the start",
        )  # fmt: skip
    if record.source.label is None:
        raise UserError(f"evaluation {name} has no labels to learn from", got="source.label = null", fix="set source.label")
    if None in (record.views.text, getattr(record.views, record.modality)):
        needed = f"views.{record.modality} and views.text"
        raise UserError(f"evaluation {name} lacks a view", got=", ".join(record.views.names()) or "none", allowed=needed)
    return record


def _objective(
    folder: Path, config: PreTrainedConfig, record: Evaluation, classes: ClassPrompts, tuning: Tuning, tokenizer
) -> NamedClasses:
    plain = NamedClasses(modality=record.modality, names=classes.names)
    if tuning.method == "linear":
        return plain
    length, texts = record.views.text.length, classes.prompts()
    ids = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    each = len(classes.templates)
    prompts = [ids[i : i + each] for i in range(0, len(ids), each)]
    compared = {"family": trained_family(config, record)} if record.head == "likelihood" else {}
    if record.head == "pair":
        compared = {"temperature": trained_temperature(folder, config, record)}
    return plain.model_copy(update={"prompts": prompts, "length": length, **compared})


def trained_temperature(folder: Path, config: PreTrainedConfig, record: Evaluation) -> float:
    """At which the model in `folder` compares the evaluation's modality with text, in the evaluation's task if it says one.

    Raises UserError for a model that has never compared them.
    """
    modality = record.modality
    for task in sorted(config.objectives, key=lambda name: name != record.task):
        for position, spec in enumerate(config.objectives[task]["objectives"]):
            objective = split_spec(spec)[0]
            found = objective.trained_temperature(modality)
            if isinstance(found, str):
                return objective.temperature_of(float(stored_weight(folder, f"objectives.{task}.parts.{position}.{found}")))
            if found is not None:
                return found
    raise UserError(
        f"the model has never compared {modality} with text: it does not know the names of classes",
        got=f"objectives of {', '.join(config.objectives) or 'no task'}", allowed=f"a contrastive task of {modality} and text",
        fix="--method linear, which needs no names",
    )  # fmt: skip


def trained_family(config: PreTrainedConfig, record: Evaluation) -> str:
    """Whose scale the likelihood head has for the evaluation's modality: of the evaluation's task, or of one that reads it.

    Raises UserError for a model without such a task.
    """
    for task in sorted(config.objectives, key=lambda name: name != record.task):
        for spec in config.objectives[task]["objectives"]:
            objective = split_spec(spec)[0]
            if objective.scale_family and record.modality in objective.sides().inputs:
                return objective.scale_family
    raise UserError(
        f"no task of the model has compared {record.modality} by the likelihood head",
        got=f'evaluation {record.name}: head = "likelihood"',
        allowed='head = "pair" for a model of contrastive tasks', fix="--method linear, which needs no names",
    )  # fmt: skip


def _model(run: RunConfig, config: PreTrainedConfig, tuning: Tuning):
    """The settings that make the exported model, which may be a merged one, with prompts."""
    kept = ("text_length", "qk_norm", "num_experts", "moe_layers", "gate", "conditional_linears", "share_decisions")
    changes = {name: getattr(config, name) for name in kept}
    changes |= {"merged_conditions": config.merged_conditions or None, "gate_tasks": config.gate_tasks or None}
    if tuning.method == "prompt":
        changes |= {"prompt_length": tuning.prompt_length, "candidate_prompts": tuning.candidate_prompts}
    return run.model.model_copy(update=changes)


def _train(source: RunConfig, folder: Path, tuning: Tuning):
    changes = dict(
        steps=tuning.steps, seed=tuning.seed, schedule="rotation", ep_size=1, init_from=str(folder),
        trainable=TRAINABLE[tuning.method], interference_every=0,
    )  # fmt: skip
    return source.train.model_copy(update=changes)


def _optimizer(source: RunConfig, tuning: Tuning) -> OptimizerSettings:
    """Published: no weight decay. The rate rises for a tenth of the steps, and falls to nothing."""
    warmup = int(_WARMUP * tuning.steps)
    return OptimizerSettings(peak_rate=tuning.peak_rate, warmup_steps=warmup, weight_decay=0.0, clip=source.optimizer.clip)
