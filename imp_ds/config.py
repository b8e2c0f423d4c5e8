"""RunConfig: all that a run is, in one record: model, data, tasks, training, optimizer, evaluations.

A recipe returns one, `--set` changes it, and it is saved with every run. Engine facts (ZeRO stage, offload, precision)
are not here but in the DeepSpeed configuration; what both could own, this one owns.
"""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from imp_ds.data.files.storage import DEFAULT_ROOT
from imp_ds.errors import UserError
from imp_ds.evaluation_record import Evaluation
from imp_ds.json_files import read_json
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.views import data_settings
from imp_ds.model_settings import AnyModelSettings, default_settings
from imp_ds.overrides import apply_overrides, parse_record
from imp_ds.records import OpenRecord, Record
from imp_ds.tasks import Task
from imp_ds.written_files import write_json

FILE_NAME = "run_config.json"


class DataSettings(OpenRecord):
    """Where samples come from and how they are read."""

    root: str = Field(DEFAULT_ROOT, description="folder of the corpus; sources and classes.json are relative to it")
    workers: int = Field(1, ge=0, description="loader processes of each rank; 0 loads in the training process")
    prefetch: int = Field(4, ge=1, description="batches prepared ahead, for each worker")
    cache_mb: int = Field(512, ge=0, description="decoded samples kept by each worker, in MiB; 0 keeps none")
    seed: int = Field(0, ge=0, description="of the order, the captions, the dropped tokens, dropout and the routers' noise")
    window: int = Field(65536, ge=1, description="samples that are shuffled among each other, after the shards have been")
    max_rejected: float = Field(0.05, ge=0, le=1, description="largest share of a source's samples that may be unusable")
    cache_dir: str | None = Field(None, description="for indexes and copies of remote files; default: ~/.cache/imp_ds")
    cache_gb: float = Field(50.0, gt=0, description="copies of remote files that are kept, in GiB, by all processes of a machine")
    retries: int = Field(5, ge=0, description="attempts to read a remote file after the first has failed")
    tokenizer: str | None = Field(None, description="name or path of a Hugging Face tokenizer; None trains one on the captions")
    vocab_size: int = Field(32100, ge=8, description="largest vocabulary of a tokenizer trained on the captions")
    decoding: DecodingSettings = Field(DecodingSettings(), description="limits and choices of decoding")
    timeout_s: float = Field(300.0, gt=0, description="a batch that takes longer is an error")

    @classmethod
    def more_fields(cls):
        """What modalities have to set for all tasks together."""
        return data_settings()


class TrainSettings(Record):
    """How long, in which order, over which ranks, and how often something is reported, tried or saved."""

    steps: int = Field(ge=1, description="optimizer steps of the run, over all tasks")
    seed: int = Field(0, ge=0, description="of the weights and of the sampled schedule")
    schedule: Literal["rotation", "sampling", "sampling_per_rank"] = Field(
        "rotation",
        description="tasks by their intervals, or drawn by their weights, the same on all ranks; or each rank draws its own, but "
        "ranks that share experts one: then a rank takes its share of a task's batch, the gradient is the mean over the ranks, "
        "and samples are compared with those of the same rank alone",
    )
    ep_size: int = Field(1, ge=1, description="ranks that share one set of experts")
    gradient_checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory")
    compile: bool = Field(False, description="compile the encoder's blocks, once for each task's shapes, before the first step")
    trainable: list[str] | None = Field(
        None, description="names of the parameters that are trained, with * for anything; None: all"
    )
    init_from: str | None = Field(
        None, description="folder of an exported model, or of a CLIP, SigLIP, ViT or DINOv2 or its name on the hub, to start from"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights, scored and exported beside them; None: none is kept"
    )
    spike_deviations: float = Field(6.0, ge=0, description="a loss or norm further above its task's mean skips the step; 0: off")
    max_bad_steps: int = Field(10, ge=1, description="steps skipped since the last checkpoint before the run goes back to it")
    max_rollbacks: int = Field(2, ge=0, description="times the run goes back to its last checkpoint before it stops")
    hang_timeout_s: float = Field(1800.0, gt=0, description="a rank that makes no progress for so long ends the run")
    start_timeout_s: float = Field(
        1800.0, gt=0, description="a start, or the wait for a rank to start, that makes no progress for so long ends"
    )
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        ["tensorboard"], description="where curves and samples go; trackio and wandb are packages of their own"
    )
    log_every: int = Field(50, ge=1, description="steps from one line of curves to the next")
    eval_every: int = Field(1000, ge=0, description="0: at the end only")
    validation_batches: int = Field(
        16, ge=0, description="batches of each task whose mean loss is its validation loss, at each evaluation; 0: none"
    )
    best: str | None = Field(
        None, description="a score on validation, by its name in results.json: the checkpoint at which it is best is kept"
    )
    patience: int | None = Field(None, ge=1, description="evaluations in a row without a better score `best` that end the run")
    interference_every: int = Field(0, ge=0, description="steps from one measurement of how tasks interfere to the next; 0: none")
    interference_samples: int = Field(100, ge=2, description="gradients of each task in such a measurement; published: 100")
    save_every: int = Field(1000, ge=0, description="0: at the end only")
    keep_checkpoints: int = Field(2, ge=1, description="the newest ones that are kept")
    milestone_every: int = Field(0, ge=0, description="checkpoints at multiples of it are kept for ever; 0: none")

    @model_validator(mode="after")
    def _patience_has_a_score(self):
        if self.patience is not None and self.best is None:
            raise UserError(
                "train.patience waits for a better score, but train.best names none", got=f"train.patience = {self.patience}",
                fix="--set train.best=validation/TASK/loss, or another score of results.json",
            )  # fmt: skip
        return self

    @property
    def mixed(self) -> bool:
        """Whether ranks may train different tasks in one step."""
        return self.schedule == "sampling_per_rank"


class OptimizerSettings(Record):
    """AdamW, and a learning rate that falls before it rises (IMP release, `config/experiment.py`, `schedules.py`).

    Linear from pre_warmup_rate to warmup_rate in pre_warmup_steps, linear to peak_rate in warmup_steps, then a cosine to
    final_rate, reached decay_steps after the pre-warmup (the warmup counts towards decay_steps, as in optax).

    With task_normalisation a gradient g of task k becomes w_k g / |g|, over all parameters and ranks, where w_k is the task's
    gradient_norm (task-balanced gradient normalisation: Uni-Perceiver v2, arXiv 2211.09808); under sampling_per_rank each rank's
    own does, before the mean. The moments are AdamW's. That paper also makes up in them for how often a task is drawn, s_k; here
    w_k = 1 / s_k does so in the first one.
    """

    peak_rate: float = Field(1e-3, gt=0, description="highest learning rate")
    pre_warmup_rate: float = Field(0.0, ge=0, description="learning rate of the first step, with a pre-warmup")
    pre_warmup_steps: int = Field(0, ge=0, description="steps from pre_warmup_rate to warmup_rate")
    warmup_rate: float = Field(0.0, ge=0, description="learning rate at the beginning of the warmup")
    warmup_steps: int = Field(0, ge=0, description="steps from warmup_rate to peak_rate")
    final_rate: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    decay_steps: int | None = Field(None, ge=1, description="None: final_rate is reached when the run ends")
    weight_decay: float = Field(1e-4, ge=0, description="on matrices that multiply only")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the first and second moment")
    eps: float = Field(1e-7, gt=0, description="added to the root of the second moment")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 is off")
    task_normalisation: bool = Field(False, description="rescale each task's gradient to the norm gradient_norm of the task")

    def learning_rate(self, step: int, total_steps: int) -> float:
        """The rate of optimizer step `step`, from 0, of a run of `total_steps`: a pure function."""
        if step < self.pre_warmup_steps:
            return self.pre_warmup_rate + (self.warmup_rate - self.pre_warmup_rate) * step / self.pre_warmup_steps
        step = step - self.pre_warmup_steps
        if step < self.warmup_steps:
            return self.warmup_rate + (self.peak_rate - self.warmup_rate) * step / self.warmup_steps
        full = self.decay_steps if self.decay_steps is not None else total_steps - self.pre_warmup_steps
        share = min(1.0, (step - self.warmup_steps) / max(1, full - self.warmup_steps))
        return self.final_rate + (self.peak_rate - self.final_rate) * 0.5 * (1.0 + math.cos(math.pi * share))


class RunConfig(Record):
    """One run. `override` is what `--set` does; `save` and `load` keep it as JSON beside what it made."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100, description="of the run; its folder is runs/NAME")
    model: AnyModelSettings = Field(default_factory=default_settings, description="the model, by its family")
    data: DataSettings = Field(DataSettings(), description="where samples come from")
    tasks: list[Task] = Field(min_length=1, description="that take turns")
    evaluations: list[Evaluation] = Field([], description="measured while it trains, and by eval")
    train: TrainSettings = Field(description="how long, over which ranks, how often")
    optimizer: OptimizerSettings = Field(OptimizerSettings(), description="AdamW and its learning rate")

    @model_validator(mode="after")
    def _names_are_unique(self):
        for what, entries in (("tasks", self.tasks), ("evaluations", self.evaluations)):
            names = [entry.name for entry in entries]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(
                    f"two {what} have one name", got=", ".join(twice), fix="names also name heads and curves: rename one"
                )
        return self

    def task(self, name: str) -> Task:
        """The task of that name; UserError when there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UserError("unknown task", got=name, allowed=", ".join(task.name for task in self.tasks))

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, from 0."""
        return self.optimizer.learning_rate(step, self.train.steps)

    def override(self, overrides: list[str]) -> "RunConfig":
        """A copy with each "path=value" set; tasks and evaluations by name or index. Raises UserError."""
        return apply_overrides(self, overrides)

    def save(self, path: str | Path) -> Path:
        """Write JSON to `path`, or to run_config.json in the folder `path`; returns the file."""
        path = _file(path)
        return write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: str | Path) -> "RunConfig":
        """Read what `save` wrote. Raises UserError for a file that is missing, damaged or of another shape."""
        path = _file(path)
        return parse_record(cls, read_json(path, dict, "restore the file from the run"), str(path))


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / FILE_NAME if path.is_dir() else path
