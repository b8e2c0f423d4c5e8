"""RunConfig: all that a run is, in one record: model, data, tasks, training, optimizer, evaluations.

A recipe returns one, `--set` changes it, and it is saved with every run. Engine facts (ZeRO stage, offload, precision)
are not here but in the DeepSpeed configuration; what both could own, this one owns.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from imp_ds.data.storage import DEFAULT_ROOT
from imp_ds.decoding_settings import DecodingSettings
from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.modalities.masking import mask_id
from imp_ds.modalities.text import end_id
from imp_ds.models.imp.configuration_imp import MOST_LAYERS, ImpConfig
from imp_ds.moe.registry import ROUTERS
from imp_ds.objectives.registry import task_entry
from imp_ds.overrides import apply_overrides, parse_record
from imp_ds.records import Record
from imp_ds.tasks import Evaluation, Task
from imp_ds.written_files import write_json

FILE_NAME = "run_config.json"
Count = Annotated[int, Field(ge=1)]
Size = Literal["tiny", "S", "B", "M", "L"]


class ModelSettings(Record):
    """The encoder: a published size, and whatever differs from it. A field left at None keeps the size's or ImpConfig's value."""

    size: Size = Field("B", description="published size whose widths and layers are taken")
    hidden_size: int | None = Field(None, ge=1, description="width of the encoder")
    intermediate_size: int | None = Field(None, ge=1, description="width of the feed-forward")
    num_hidden_layers: int | None = Field(None, ge=1, le=MOST_LAYERS, description="layers of the encoder")
    num_attention_heads: int | None = Field(None, ge=1, description="attention heads; they divide the width")
    qk_norm: bool | None = Field(None, description="normalise queries and keys")
    hidden_dropout: float | None = Field(None, ge=0, lt=1, description="dropout in the encoder")
    vision_patch: tuple[Count, Count, Count] | None = Field(None, description="frames, height, width of a patch")
    vision_max: tuple[Count, Count, Count] | None = Field(None, description="the largest clip, same units")
    audio_patch: tuple[Count, Count] | None = Field(None, description="spectrogram frames and mel bins of a patch")
    audio_max: tuple[Count, Count] | None = Field(None, description="the largest spectrogram, same units")
    text_max: int | None = Field(None, ge=1, description="the longest text in tokens")
    text_length: int | None = Field(
        None, ge=1, description="tokens that the texts of training are padded to; None: the longest text view of the tasks"
    )
    common_dim: int | None = Field(None, ge=1, description="width of the space in which modalities are compared")
    num_experts: int | None = Field(None, ge=0, description="experts of each MoE layer; 0 is a dense encoder")
    moe_layers: str | list[int] | None = Field(
        None, description='"all", "first:N", "last:N", "every:N", "four" (every fourth) or a list of indices from 0'
    )
    gate: Literal["token", "context", "modality", "task", "attribute"] | None = Field(
        None, description="what the choice of experts hangs on"
    )
    conditional_maps: list[Literal["qkv", "out", "up", "down"]] | None = Field(
        None, description="linear maps that have experts; None: the whole feed-forward; up and down of a constant gate"
    )
    share_decisions: bool | None = Field(None, description="out goes by the choice of qkv, down by that of up")
    gate_tasks: list[str] | None = Field(None, description="tasks that a task gate knows, in order; None: those of the run")
    router: Annotated[str, AfterValidator(ROUTERS.known)] | None = Field(
        None, description=f"how experts are chosen: {', '.join(ROUTERS.homes)}, or what an imported module registers"
    )
    router_options: dict[str, Any] | None = Field(None, description="of the router's own options those that have no field here")
    experts_per_token: int | None = Field(None, ge=1, description="choices of a token, where tokens choose")
    drop_tokens: bool | None = Field(None, description="where tokens choose: whether an expert keeps at most its capacity")
    expert_intermediate_size: int | None = Field(None, ge=1, description="feed-forward width of one expert")
    expert_activation: Literal["gelu", "geglu"] | None = Field(None, description="activation inside an expert")
    capacity_factor: float | None = Field(None, gt=0, description="room of the experts; where they choose, experts of a token")
    group_tokens: int | None = Field(None, ge=1, description="tokens of a routing group at most")
    group_examples: int | None = Field(None, ge=1, description="examples of a routing group at most; None: no limit")
    router_z_loss: float | None = Field(None, ge=0, description="coefficient of the loss on large router logits")
    router_balance: float | None = Field(None, ge=0, description="where tokens choose: coefficient of the load-balancing loss")
    router_noise: float | None = Field(None, ge=0, description="noise on the router's logits, in units of 1 / num_experts")
    prompt_length: int | None = Field(None, ge=0, description="deep prompts of each layer; 0: none")
    prompt_sides: Literal["shared", "separate"] | None = Field(None, description="separate: candidates have prompts of their own")
    merged_conditions: list[str] | None = Field(None, description="of a merged model: the conditions that it has copies for")

    def to_config(self, vocab_size: int, tasks: list[Task], tokenizer=None) -> ImpConfig:
        """The ImpConfig of these settings, with the objectives of `tasks`.

        tokenizer: the run's, from which likelihood objectives have the tokens of their candidates; without it a model can be
        built and measured, but these objectives not computed. Raises UserError when the settings contradict each other.
        """
        changes = {name: value for name, value in self.model_dump(exclude={"size"}).items() if value is not None}
        objectives = {task.name: task_entry(task.objectives, task.reduction, tokenizer, task.name) for task in tasks}
        if tokenizer is not None and any(objective.scale_family for task in tasks for objective in task.objectives):
            changes |= {"mask_token_id": mask_id(tokenizer), "end_token_id": end_id(tokenizer)}
        changes |= _class_names(tasks)
        lengths = [view.text.length for task in tasks for view in task.all_views if view.text is not None]
        if self.text_length is None and lengths:
            changes["text_length"] = max(lengths)
        config = ImpConfig.from_size(self.size, vocab_size=vocab_size, objectives=objectives, **changes)
        for task in tasks:
            for objective in task.objectives:
                objective.check_model(config, task.name)
        return config


def _class_names(tasks: list[Task]) -> dict:
    """id2label and label2id, as transformers has them, of the first task whose labels are classes with names; nothing where none
    has."""
    labelled = (o for task in tasks for o in task.objectives if o.answers() is not None and o.answers().field == "names")
    names = next((o.names for o in labelled), None)
    if names is None:
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}


class AudioSettings(Record):
    """The log-mel spectrogram, the same for all tasks. The defaults are IMP's."""

    sampling_rate: int = Field(16000, ge=1, description="samples per second")
    frame_length: int = Field(2048, ge=2, description="samples of a frame")
    hop_length: int = Field(1024, ge=1, description="samples from one frame to the next")
    mel_bins: int = Field(128, ge=1, description="mel bands of the spectrogram")
    min_frequency: float = Field(80.0, ge=0, description="Hz")
    max_frequency: float = Field(7600.0, gt=0, description="Hz")
    normalize: bool = Field(False, description="bring each sound to mean 0 and variance 1, so that its loudness does not count")


class DataSettings(Record):
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
    audio: AudioSettings = Field(AudioSettings(), description="the spectrogram")
    decoding: DecodingSettings = Field(DecodingSettings(), description="limits and choices of decoding")
    timeout_s: float = Field(300.0, gt=0, description="a batch that takes longer is an error")


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
    init_from: str | None = Field(None, description="folder of an exported model whose weights the run starts from")
    spike_deviations: float = Field(6.0, ge=0, description="a loss or norm further above its task's mean is skipped; 0: off")
    max_bad_steps: int = Field(10, ge=1, description="steps skipped since the last checkpoint before the run goes back to it")
    max_rollbacks: int = Field(2, ge=0, description="times the run goes back to its last checkpoint before it stops")
    hang_timeout_s: float = Field(1800.0, gt=0, description="a rank that makes no progress for so long ends the run")
    start_timeout_s: float = Field(
        1800.0, gt=0, description="a start, or the wait for a rank to start, that makes no progress for so long ends"
    )
    log_every: int = Field(50, ge=1, description="steps from one line of curves to the next")
    eval_every: int = Field(1000, ge=0, description="0: at the end only")
    interference_every: int = Field(0, ge=0, description="steps from one measurement of how tasks interfere to the next; 0: none")
    interference_samples: int = Field(100, ge=2, description="gradients of each task in such a measurement; published: 100")
    save_every: int = Field(1000, ge=0, description="0: at the end only")
    keep_checkpoints: int = Field(2, ge=1, description="the newest ones that are kept")
    milestone_every: int = Field(0, ge=0, description="checkpoints at multiples of it are kept for ever; 0: none")

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
    task_normalisation: bool = Field(False, description="every gradient gets the norm that its task is given, gradient_norm")

    def learning_rate(self, step: int, total_steps: int) -> float:
        """The rate of optimizer step `step`, from 0, of a run of `total_steps`: a pure function."""
        if step < self.pre_warmup_steps:
            return self.pre_warmup_rate + (self.warmup_rate - self.pre_warmup_rate) * step / self.pre_warmup_steps
        step = step - self.pre_warmup_steps
        if step < self.warmup_steps:
            return self.warmup_rate + (self.peak_rate - self.warmup_rate) * step / self.warmup_steps
        whole = self.decay_steps if self.decay_steps is not None else total_steps - self.pre_warmup_steps
        share = min(1.0, (step - self.warmup_steps) / max(1, whole - self.warmup_steps))
        return self.final_rate + (self.peak_rate - self.final_rate) * 0.5 * (1.0 + math.cos(math.pi * share))


class RunConfig(Record):
    """One run. `override` is what `--set` does; `save` and `load` keep it as JSON beside what it made."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100, description="of the run; its folder is runs/NAME")
    model: ModelSettings = Field(ModelSettings(), description="the encoder")
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
