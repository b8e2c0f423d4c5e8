"""The Task record: one (dataset, objective) pair of alternating gradient descent. Adding a task is one entry."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

Modality = Literal["vision", "audio", "text"]


class Record(BaseModel):
    """A record whose unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class VisionView(Record):
    """How a task sees images and films. `frames` 1 is an image; `drop_rate` is the share of tokens dropped in training
    (DropToken, VATT, arXiv 2104.11178): uniformly at random, true coordinates kept."""

    frames: int = Field(1, ge=1, description="frames of a clip, drawn uniformly over the film; 1 for an image")
    height: int = Field(256, ge=1, description="pixels")
    width: int = Field(256, ge=1, description="pixels")
    drop_rate: float = Field(0.0, ge=0.0, lt=1.0, description="share of tokens dropped in training")


class AudioView(Record):
    """How a task hears: `seconds` of sound, cut or padded with silence."""

    seconds: float = Field(8.192, gt=0, description="length of the sound in seconds")
    drop_rate: float = Field(0.0, ge=0.0, lt=1.0, description="share of tokens dropped in training")


class TextView(Record):
    """How a task reads: at most `length` tokens, padded to exactly that many."""

    length: int = Field(16, ge=1, description="tokens")


class Views(Record):
    """One view for each modality that a task uses; a modality without a view is not decoded."""

    vision: VisionView | None = None
    audio: AudioView | None = None
    text: TextView | None = None

    def names(self) -> list[str]:
        """The modalities that have a view, in the fixed order vision, audio, text."""
        return [name for name in ("vision", "audio", "text") if getattr(self, name) is not None]


class Source(Record):
    """Where the samples of a task lie: a folder `{path}/{split}` with a metadata.jsonl and its media files."""

    path: str = Field(description="folder, relative to data.root unless absolute")
    vision: str | None = Field(None, description="metadata column that names the image or film file")
    audio: str | None = Field(None, description="metadata column that names the sound file, or a film with sound")
    text: str | None = Field(None, description="metadata column with a caption or a list of captions (one drawn per visit)")
    label: str | None = Field(None, description="metadata column with the class index")


class Contrastive(Record):
    """Cross-modal noise-contrastive estimation over pairs of modalities (IMP release, `optimization/objectives.py`)."""

    kind: Literal["contrastive"] = "contrastive"
    pairs: list[tuple[Modality, Modality]] = Field(min_length=1)
    positives: Literal["diagonal", "equal"] = Field(
        "diagonal", description='"diagonal": the other half of the same sample; "equal": every sample of equal label'
    )
    temperature: float = Field(0.2, gt=0, description="initial learned temperature of each pair")
    weight: float = Field(1.0, ge=0)


class Classification(Record):
    """Classification of one modality by a linear head of the task's own."""

    kind: Literal["classification"] = "classification"
    modality: Modality
    num_classes: int = Field(ge=2)
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    weight: float = Field(1.0, ge=0)


Objective = Annotated[Contrastive | Classification, Field(discriminator="kind")]


class Task(Record):
    """One entry of the rotation: what is read, how it is seen, what is learned, and how often."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    source: Source
    views: Views
    objectives: list[Objective] = Field(min_length=1)
    reduction: Literal["sum", "mean"] = Field("sum", description="how several objectives on one batch are combined")
    interval: int = Field(1, ge=1, description="rotation: the task trains on every interval-th visit")
    weight: float = Field(1.0, ge=0, description="sampling: relative probability of the task")
    batch_size: int = Field(ge=1, description="samples of one optimizer step, over all ranks")
    pieces: int = Field(1, ge=1, description="parts of a rank's batch that are in memory one at a time; the gradient is the same")

    @model_validator(mode="after")
    def _objectives_are_fed(self):
        used = set()
        for objective in self.objectives:
            if objective.kind == "contrastive":
                used.update(m for pair in objective.pairs for m in pair)
                if any(a == b for a, b in objective.pairs):
                    raise ValueError(f"task {self.name}: a contrastive pair needs two different modalities")
            else:
                used.add(objective.modality)
        for modality in sorted(used):
            if getattr(self.views, modality) is None:
                raise ValueError(f"task {self.name}: an objective uses {modality}, but views.{modality} is not set")
            if getattr(self.source, modality) is None:
                raise ValueError(f"task {self.name}: an objective uses {modality}, but source.{modality} names no column")
        needs_label = any(o.kind == "classification" or o.positives == "equal" for o in self.objectives)
        if needs_label and self.source.label is None:
            raise ValueError(f"task {self.name}: an objective needs labels, but source.label names no column")
        return self


class Batch:
    """What one rank feeds in one step: inputs {modality: {input name: Tensor}}, targets {name: Tensor}; two levels, never more.

    `targets["label"]` holds class indices, int64 [B]. `key_B` holds the samples' random keys (`imp_ds.randomness`), int64 [B];
    None, as in evaluation: nothing is random.
    """

    __slots__ = ("task", "inputs", "targets", "key_B")

    def __init__(self, task: str, inputs: dict[str, dict[str, torch.Tensor]], targets: dict[str, torch.Tensor],
                 key_B: torch.Tensor | None = None):  # fmt: skip
        self.task, self.inputs, self.targets, self.key_B = task, inputs, targets, key_B

    def map(self, function) -> "Batch":
        """The same batch with `function` applied to every tensor."""
        inputs = {m: {name: function(t) for name, t in tensors.items()} for m, tensors in self.inputs.items()}
        targets = {name: function(t) for name, t in self.targets.items()}
        return Batch(self.task, inputs, targets, None if self.key_B is None else function(self.key_B))

    def to(self, device, non_blocking: bool = True) -> "Batch":
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self.map(lambda t: t.pin_memory())


class Evaluation(Record):
    """One zero-shot evaluation: a modality of a source against text, over a whole split.

    With `classes` it classifies: the class names, put through prompt templates, are the text. With `source.text` it
    retrieves captions from the modality and the modality from captions.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="in results: zero_shot/{name}/top1, retrieval/{name}/...")
    modality: Literal["vision", "audio"]
    source: Source
    views: Views
    classes: str | None = Field(None, description="entry of {data.root}/classes.json with class names and prompt templates")
