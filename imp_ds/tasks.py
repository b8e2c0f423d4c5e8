"""The Task record: one (dataset, objective) pair of alternating gradient descent. Adding a task is one entry."""

import zlib
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field, JsonValue, model_validator

from imp_ds.modalities import MODALITIES
from imp_ds.modalities.messages.turns import check_turns
from imp_ds.modalities.modality import TEXT, get_modality
from imp_ds.modalities.views import Augmentation, Views, alterations, columns, known_alteration
from imp_ds.objectives.objective import Needs
from imp_ds.objectives.registry import AnyObjective
from imp_ds.records import OpenRecord, Record
from imp_ds.registry import FORMATS

_VIEWS = 3  # what a random generator is for: the first word of its seed (`imp_ds.data.loading.loader` has others)


class Source(OpenRecord):
    """Where samples lie, in which format, and what of them is read. Adding a data set to a recipe is one such entry.

    A column is a field of a row: a metadata or Parquet column, a feature of a Hugging Face data set; in tar shards an
    extension ("jpg", or "jpg;png" for whichever is there) or a field of a JSON member ("json.caption").
    """

    path: str = Field(
        description="folder, shard or pattern of shards, relative to data.root unless absolute or an address (s3://, memory://); "
        "under huggingface also the name of a data set"
    )
    format: Annotated[str, AfterValidator(FORMATS.known)] = Field(
        "folder", description=f"how the samples are stored: {', '.join(FORMATS.homes)}, or what an imported module registers"
    )
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        {}, description="what a split is called there, where it is not train, validation or test; or a pattern of its files"
    )
    subset: str | None = Field(None, description="huggingface: the data set's configuration")
    revision: str | None = Field(None, description="huggingface: branch, tag or commit")
    streaming: bool = Field(False, description="huggingface: read from where it lies instead of downloading all of it first")
    label: str | None = Field(None, description="column of the class: an index, or a name among label_names")
    label_names: list[str] | str | None = Field(
        None, description="class names in the order of the indices, or the JSON file that lists them, beside the data"
    )
    templates: list[str] = Field(
        [], description='texts made of the class name, such as "a photo of a {}.", where text names no column'
    )
    turns: Annotated[list[str | list[str]], AfterValidator(check_turns)] = Field(
        [], description="conversations made of columns, where messages names none: texts of user and assistant by turns, such as "
        '["<image>{question}", "{answer}"]'
    )
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="of CSV; None: a comma, a tab in .tsv")
    holdout: dict[Literal["validation", "test"], Annotated[float, Field(gt=0, lt=1)]] = Field(
        {}, description="share of the training samples that is held out for a split which the source does not have"
    )
    media_root: list[str] = Field([], description="folders elsewhere whose files rows may name, by absolute paths or links")
    options: dict[str, JsonValue] = Field({}, description="of a format that has some of its own")
    weight: float = Field(1.0, gt=0, description="relative share of a task's samples, where it lists several sources")
    fraction: float = Field(
        1.0, gt=0.0, le=1.0, description="share of each class's training samples that is used, drawn by data.seed; 1: all"
    )
    captions_ignore: list[Annotated[str, AfterValidator(known_alteration)]] = Field(
        [], description="what no caption speaks of, so that pictures may be mirrored (sides) or recoloured (colours)"
    )

    @classmethod
    def more_fields(cls):
        """A column for each modality."""
        return columns()

    @model_validator(mode="after")
    def _fields_agree(self):
        if self.fraction < 1 and self.label is None:
            raise ValueError(f"{self.path}: a fraction is drawn from each class, but label names no column")
        if sum(self.holdout.values()) >= 1:
            raise ValueError(f"{self.path}: holdout leaves nothing for training, got {self.holdout}")
        for role in MODALITIES:
            field = get_modality(role).made_of
            if field is not None and getattr(self, field) and getattr(self, role) is not None:
                raise ValueError(f"{self.path}: {field} is set beside the column {role}; set one of them")
        FORMATS.options(self.format, self.options)
        return self

    def roles(self) -> list[str]:
        """What a sample of it has: modalities and "label", those that are read."""
        has = {role: getattr(self, role) is not None for role in (*MODALITIES, "label")}
        return [role for role, there in has.items() if there or role == TEXT and self.templates or self.made_of(role)]

    def made_of(self, role: str):
        """What the samples of a modality are made of, where no column is named; None or empty: nothing."""
        field = get_modality(role).made_of if role in MODALITIES and getattr(self, role) is None else None
        return None if field is None else getattr(self, field)

    def made_columns(self) -> list[str]:
        """The columns that samples are made of."""
        made = {role: self.made_of(role) for role in self.roles()}
        return [column for role, of in made.items() if of for column in get_modality(role).made_columns(of)]


class Task(Record):
    """One entry of the rotation: what is read, how it is seen, what is learned, and how often.

    Several sources are mixed by their weights. Of several views a step draws one by weight, the same on all ranks; they differ in
    resolution, length or dropped tokens (IMP, section 3.2: at a constant number of tokens).
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100, description="names its head and its curves")
    source: Source = Field(description="where its samples come from")
    additional_sources: list[Source] = Field([], description="mixed with it by weight")
    views: Views = Field(description="how its samples are seen")
    additional_views: list[Views] = Field([], description="each step draws one of these and `views` by weight")
    augment: Augmentation = Field(Augmentation(), description="what training changes at random")
    objectives: list[AnyObjective] = Field(min_length=1, description="what is learned; their losses are combined")
    reduction: Literal["sum", "mean"] = Field("sum", description="how several objectives on one batch are combined")
    interval: int = Field(1, ge=1, description="rotation: the task trains in every interval-th round")
    weight: float = Field(1.0, ge=0, description="sampling: relative probability of the task")
    gradient_norm: float = Field(1.0, gt=0, description="with optimizer.task_normalisation: norm to rescale its gradient to")
    batch_size: int = Field(ge=1, description="samples of one optimizer step, over all ranks")
    micro_batches: int = Field(
        1, ge=1, description="micro-batches of a rank's batch, one in memory at a time (gradient accumulation); same gradient"
    )
    group_by_length: int = Field(
        0, ge=0, description="batches whose samples are sorted by length together, so that those of one batch are alike; 0: none"
    )
    drop_last: bool = Field(False, description="leave out what does not fill a batch at the end of an epoch")

    @property
    def sources(self) -> list[Source]:
        """Its sources, one or several."""
        return [self.source, *self.additional_sources]

    @property
    def all_views(self) -> list[Views]:
        """The views that a step may draw, one or several."""
        return [self.views, *self.additional_views]

    def draw_view(self, seed: int, occurrence: int) -> int:
        """Which of `all_views` the task's step number `occurrence`, from 0, takes: a pure function, so all ranks draw the
        same."""
        if not self.additional_views:
            return 0
        draw = np.random.default_rng([_VIEWS, seed, zlib.crc32(self.name.encode()), occurrence]).random()
        edges = np.cumsum([view.weight for view in self.all_views])
        return int(np.searchsorted(edges / edges[-1], draw, side="right"))

    def seen_as(self, view: int) -> "Task":
        """The task with that one of `all_views` alone."""
        return self.model_copy(update={"views": self.all_views[view], "additional_views": []})

    def variants(self) -> list["Task"]:
        """The task with each of its views alone: what has to be planned for, checked, compiled."""
        return [self.seen_as(view) for view in range(len(self.all_views))]

    @property
    def modalities(self) -> list[str]:
        """What a sample must have to be of use, in the order of the registry."""
        return self.views.names()

    @property
    def needs(self) -> Needs:
        """What its objectives need of each sample, together."""
        each = [objective.needs() for objective in self.objectives]
        return Needs(
            frozenset().union(*(need.modalities for need in each)),
            label=any(need.label for need in each),
            classes=min((need.classes for need in each if need.classes is not None), default=None),
            mask_rate=next((need.mask_rate for need in each if need.mask_rate), 0.0),
            target_ids=any(need.target_ids for need in each),
            mask_at_answer=any(need.mask_at_answer for need in each),
        )

    @model_validator(mode="after")
    def _objectives_are_fed(self):
        if any(views.names() != self.modalities for views in self.all_views):
            raise ValueError(f"task {self.name}: its views are not all of the same modalities")
        needs = self.needs
        if needs.mask_at_answer and needs.mask_rate:
            raise ValueError(f"task {self.name}: an answer is read at a mask, but another objective hides words behind masks")
        for source in self.sources:
            for modality in sorted(needs.modalities):
                if modality not in self.modalities:
                    raise ValueError(f"task {self.name}: an objective uses {modality}, but views.{modality} is not set")
                if modality not in source.roles():
                    raise ValueError(f"task {self.name}: an objective uses {modality}, but source.{modality} names no column")
            if needs.label and source.label is None:
                raise ValueError(f"task {self.name}: an objective needs labels, but source.label names no column")
        return self

    @model_validator(mode="after")
    def _lengths_differ(self):
        if self.group_by_length and self.measured is None:
            alike = ", ".join(self.modalities)
            raise ValueError(f"task {self.name}: group_by_length is set, but all samples of {alike} are equally long")
        return self

    @property
    def measured(self) -> str | None:
        """The modality whose samples differ in length, if it has one."""
        return next((name for name in self.modalities if get_modality(name).measures), None)

    @model_validator(mode="after")
    def _augmentation_is_true(self):
        """A mirrored or recoloured picture would contradict a caption that says left or red."""
        for changed in alterations(self.augment) if TEXT in self.modalities else []:
            for source in self.sources:
                if changed not in source.captions_ignore:
                    raise ValueError(
                        f"task {self.name}: the augmentation changes {changed}, of which captions may speak; "
                        f"switch it off, or add {changed!r} to source.captions_ignore"
                    )
        return self


class Rejection(NamedTuple):
    """A sample that was left out because it cannot be read or lacks something that its task needs."""

    source: str
    key: str
    reason: str
    detail: str


class BatchReport(NamedTuple):
    """What the loader reports of a batch: which of its task's views it is seen in, the samples' keys, those that were left out on
    the way, the share of padding by modality."""

    view: int = 0
    keys: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    padding: dict[str, float] = {}


class Batch:
    """What one rank feeds in one step: inputs {modality: {input name: Tensor}}, targets {name: Tensor}; two levels, never more.

    `targets["label"]` holds class indices, int64 [B]; `targets["token_ids"]` the tokens to be found, int64 [B, L], -100
    elsewhere; `targets["caption"]` the target ids of captions, the end with them, int64 [B, L], -100 after it. `key_B` holds the
    samples' random keys (`imp_ds.randomness`), int64 [B]; None, as in evaluation: nothing is random.
    """

    __slots__ = ("task", "inputs", "targets", "key_B", "report")

    def __init__(self, task: str, inputs: dict[str, dict[str, torch.Tensor]], targets: dict[str, torch.Tensor],
                 key_B: torch.Tensor | None = None, report: BatchReport = BatchReport()):  # fmt: skip
        self.task, self.inputs, self.targets, self.key_B, self.report = task, inputs, targets, key_B, report

    def map(self, function) -> "Batch":
        """The same batch with `function` applied to every tensor."""
        inputs = {m: {name: function(t) for name, t in tensors.items()} for m, tensors in self.inputs.items()}
        targets = {name: function(t) for name, t in self.targets.items()}
        return Batch(self.task, inputs, targets, None if self.key_B is None else function(self.key_B), self.report)

    def to(self, device, non_blocking: bool = True) -> "Batch":
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self.map(lambda t: t.pin_memory())
