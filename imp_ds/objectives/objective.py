"""What an objective is: a record, which says what it needs and costs, and the module that computes its loss.

One file holds both. A subclass of `ObjectiveRecord` answers every question that the trainer has about its kind, so that nothing
outside of this package asks for the kind itself: what it leaves open is an error when its file is imported
(`imp_ds.objectives.register`).

Shapes: B samples of this rank, D width, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import nn

from imp_ds.costs import Kernel, Sequences
from imp_ds.errors import UserError
from imp_ds.modalities.modality import TextNeeds
from imp_ds.models.imp.conditions import Sides
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel
from imp_ds.records import Record


class Needs(NamedTuple):
    """What an objective needs of each sample.

    modalities: those that a sample must have, and the task a view of.
    label: whether it must have a class; classes: labels are below this number, None where nothing limits them.
    mask_rate: share of its text's words that are hidden from the model, which targets["token_ids"] has; 0: none.
    target_ids: whether targets["caption"] has the token ids of its text, to be generated.
    mask_at_answer: whether its text has a mask token where the query's state is read.
    """

    modalities: frozenset[str]
    label: bool = False
    classes: int | None = None
    mask_rate: float = 0.0
    target_ids: bool = False
    mask_at_answer: bool = False

    @property
    def text(self) -> TextNeeds:
        """What of it concerns texts."""
        return TextNeeds(self.mask_rate, self.mask_at_answer, self.target_ids)


class StepShape(NamedTuple):
    """What the cost of an objective follows from: `samples` of a rank at a time, those of all ranks in `everyone`, tokens of each
    modality, the candidates of each set, the bytes of a value."""

    config: ImpConfig
    samples: int
    everyone: int
    lengths: dict[str, int]
    candidates: dict[str, int]
    value_bytes: int


class Answers(NamedTuple):
    """The classes that an objective distinguishes: the modalities that are read, and the field of its spec that lists the
    names."""

    inputs: list[str]
    field: str


class ObjectiveRecord(Record, ABC):
    """One objective of a task. A kind is a subclass with a `kind` of its own.

    kinds: those that there are, by name (`imp_ds.objectives.register`).
    has_own_head: whether held-out loss and accuracy are those of a linear head of its own.
    is_tuned: whether it tunes a trained model on the classes of an evaluation, which its own head then measures.
    """

    kinds: ClassVar[dict[str, type["ObjectiveRecord"]]] = {}
    has_own_head: ClassVar[bool] = False
    is_tuned: ClassVar[bool] = False

    kind: str = Field(description="which objective this is")
    weight: float = Field(1.0, ge=0, description="factor of this loss in the task's")

    @abstractmethod
    def needs(self) -> Needs:
        """What it needs of each sample."""

    @abstractmethod
    def sides(self) -> Sides:
        """The modalities of its queries and of its candidates, for attribute gates."""

    @abstractmethod
    def kernels(self, shape: StepShape) -> list[Kernel]:
        """What its head and loss run on one rank, forward and backward, without the encoder."""

    @abstractmethod
    def loss_values(self, shape: StepShape) -> float:
        """Float32 values that its loss keeps for the backward, on one rank."""

    @abstractmethod
    def describe(self) -> str:
        """What is learned, in a few words for the model card."""

    @abstractmethod
    def build(self, config: ImpConfig, known: dict) -> "Objective":
        """Its module, for a model of `config`. known: what `known` found when the model was made."""

    def check_model(self, config: ImpConfig, task: str) -> None:
        """Raise UserError, naming the task, when a model of `config` lacks what it needs, or models of its family do not compute
        it."""
        if not isinstance(config, ImpConfig):
            what = f"task {task}: models of the family {config.model_type} do not compute this objective"
            raise UserError(what, got=self.kind, fix="one that they compute, such as NextToken(), or another model.family")

    def sequences(self, tokens: dict[str, int], batch_size: int) -> dict[str, Sequences]:
        """What it has encoded of the samples, by the names that its module gives: by default each modality of the task alone."""
        return {modality: Sequences(batch_size, ((modality, length),)) for modality, length in tokens.items()}

    def candidate_sequences(
        self, config: ImpConfig, known: dict, class_names: list[str] | str | None, task: str
    ) -> dict[str, Sequences]:
        """The sets of texts that it has encoded beside the samples, by a name that distinguishes sets; objectives of a task share
        equal sets. Raises UserError, naming the task, for texts that only the data give."""
        return {}

    def candidate_kernels(self, config: ImpConfig, rows: int, value_bytes: int) -> list[Kernel]:
        """What turns `rows` encoded candidates into vectors."""
        return []

    def common_spaces(self) -> list[tuple[str, str]]:
        """Pairs of modalities that it has the model project into a common space."""
        return []

    def parameters(self) -> tuple[str, ...]:
        """Prefixes of the model's parameters that it trains, beside its own and those of the task's modalities."""
        return ()

    def compared_vectors(self) -> int:
        """Vectors of each sample that are gathered from all ranks, with gradients."""
        return 0

    def wants_class_names(self) -> bool | None:
        """Whether the class names of the source must be known (True), are put down where they fit (False), or are not of use."""
        return None

    def with_class_names(self, names: list[str]) -> "ObjectiveRecord":
        """The record with the source's class names."""
        return self

    def has_open_size(self) -> bool:
        """Whether the size of its head is left to the class names of the data, so that no model can be built without them."""
        return False

    def texts(self) -> Iterator[str]:
        """Texts that it puts before the model, for a tokenizer to be trained on."""
        return iter(())

    def known(self, tokenizer, task: str) -> dict:
        """What a model has to know beyond the record, as JSON: what a tokenizer makes of its texts. Raises UserError."""
        return {}

    def answers(self) -> Answers | None:
        """The named classes that it distinguishes, if it does; its module is a `ClassObjective` then."""
        return None

    def trained_temperature(self, modality: str) -> float | str | None:
        """At which its model compares a modality with text by projections: the value, or the name of the objective's parameter
        that holds it; None: it does not."""
        return None

    def temperature_of(self, stored: float) -> float:
        """What the value of that parameter is as a temperature."""
        return stored

    @property
    def scale_family(self) -> str | None:
        """Whose scale the model's likelihood head compares with; None: it does not use that head."""
        return None



class ModelObjective(ObjectiveRecord):
    """An objective that models of a family compute themselves, as language models do the next token: its costs are counted with
    theirs, and other families refuse it. What is left to say is `needs` and `describe`."""

    def sides(self):
        return Sides(self.needs().modalities, frozenset())

    def kernels(self, shape):
        return []

    def loss_values(self, shape):
        return 0

    def build(self, config, known):
        what = f"models of {type(config).__name__} do not compute the objective {self.kind}"
        raise UserError(what, fix="choose a family that does: model.family")

    def check_model(self, config, task):
        self.build(config, {})


class Objective(nn.Module):
    """A loss on a task's batch, with the head that it needs. forward: (the encoder, encodings, targets) -> (loss, metrics).

    compares_samples: whether a sample's loss depends on the others of its batch; where not, the loss is the mean over the
        samples.
    """

    compares_samples = False

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        """Add to `encodings` what `forward` asks for and is not there yet: by default each modality of the batch alone, by its
        name.

        `batch` is an `imp_ds.tasks.Batch`. Every rank encodes the same sequences in the same order. An objective that compares
        samples reads no more than `pooled_BD` of them.
        """
        # The shortest first, because its backward then comes last. A GPU is through with a few words sooner than the host can
        # launch them; after a long sequence, which keeps it busy, nobody waits for that.
        for modality, inputs in sorted(batch.inputs.items(), key=lambda item: next(iter(item[1].values())).shape[1]):
            if modality not in encodings:
                condition = model.condition(modality, batch.task)
                encodings[modality] = model.encode(modality, inputs, batch.key_B, condition)

    def forward(
        self, model: ImpModel, encodings: dict[str, Encoding], targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        raise NotImplementedError


class ClassObjective(Objective):
    """An objective that distinguishes classes.

    inputs: the modalities that are read; answer_at: where, "start" or "mask"; class_names: of each class.
    """

    inputs: list[str]
    answer_at: str = "start"
    class_names: Sequence[str]

    def probabilities(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        """Of each sample and class, float32 [B, K]."""
        raise NotImplementedError
