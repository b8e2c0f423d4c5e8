"""A family of models: all that the trainer must know of a kind of model, behind one protocol.

Engine, trainer, checkpoints and planning ask the object of a run's family (`imp_ds.families.family_of`), and name no model.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedConfig, ProcessorMixin

from imp_ds.costs import Exchange, Kernel, Parameters
from imp_ds.families.train_module import TrainModule
from imp_ds.tasks import Task


class CostModel(Protocol):
    """What a run costs, by arithmetic. `experts`: of a MoE layer; 0: none. Tasks are those of the run, each with one view."""

    experts: int

    def sizes(self) -> dict[str, int]:
        """Elements of each parameter of the whole model, by name."""

    def parameters(self, sizes: dict[str, int]) -> Parameters:
        """Sums over `sizes`."""

    def tokens(self, task: Task) -> dict[str, int]:
        """Tokens of a sample in training, by modality. Raises UserError for a view that does not fit."""

    def encodings(self, task: Task) -> int:
        """How many sequences of different shape a step encodes: how often it meets the shared parameters."""

    def kernels(self, task: Task, world: int, value_bytes: int, ep_size: int = 1) -> list[Kernel]:
        """What one of `world` ranks runs in a step."""

    def flops(self, task: Task, world: int) -> float:
        """Model FLOPs of a step over all ranks."""

    def rank_flops(self, task: Task, world: int, alone: bool) -> float:
        """Those of one of the ranks; `alone`: it compares its own samples only."""

    def activation_bytes(self, task: Task, world: int, value_bytes: int, checkpointing: bool) -> float:
        """What one rank keeps of a step for its backward."""

    def touched(self, task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Prefixes of the parameters that a task gives gradients to, and of those that each of its encodings runs through."""

    def exchanges(self, task: Task, world: int, rounds: int, value_bytes: int) -> list[Exchange]:
        """What the ranks of an expert group send each other in a step of `rounds` passes."""

    def compared(self, task: Task) -> list[Exchange]:
        """What all ranks gather of vectors that samples are compared by."""


class ModelFamily(Protocol):
    """`Processor`: the class whose `from_pretrained` loads the processor of a run."""

    Processor: type[ProcessorMixin]

    def processor(self, run, readers: dict) -> ProcessorMixin:
        """The processor of a run, made from its configuration and corpus."""

    def config(self, run, processor: ProcessorMixin | None = None) -> PreTrainedConfig:
        """The configuration of the run's model; without a processor one that can be measured, but perhaps not trained."""

    def experts(self, config: PreTrainedConfig) -> int:
        """Experts of a MoE layer; 0: none."""

    def moe_layers(self, config: PreTrainedConfig) -> list[int]:
        """Numbers of the layers that hold experts."""

    def check(self, run, config: PreTrainedConfig, world_size: int) -> None:
        """Raise UserError for what this family cannot train on so many ranks."""

    def build(self, config: PreTrainedConfig, *, seed: int, ep_size: int) -> TrainModule:
        """The module to train, fresh, with this rank's experts: weights depend on (seed, name, expert) alone."""

    def empty(self, config: PreTrainedConfig) -> TrainModule:
        """The whole module with all experts, on the CPU, without its weights; what no checkpoint has is filled."""

    def load_initial(
        self, model: TrainModule, folder: Path, processor: ProcessorMixin
    ) -> tuple[list[str], dict[str, tuple[Path, str]]]:
        """Copy the weights of an exported model into a fresh one. Returns lines that say what was loaded, and for each parameter
        that was the file and the key there. Raises UserError."""

    def load_export(self, folder: Path) -> tuple[TrainModule, ProcessorMixin]:
        """Model and processor of an exported folder, on the CPU. Raises UserError."""

    def served_tasks(self, config: PreTrainedConfig, tasks: Collection[str]) -> list[str]:
        """Of these tasks those that a model of `config` can still do, as a merged one may not."""

    def cost(self, run) -> CostModel:
        """What the run costs."""

    def merge(self, model: TrainModule, tasks: list[str] | None) -> nn.Module:
        """The dense model of these tasks' conditions, None: of all. Raises UserError where the family has none."""

    def write_card(self, folder: Path, run, config: PreTrainedConfig, results: dict[str, Any], versions: dict, **facts) -> Path:
        """The model card of an exported folder."""
