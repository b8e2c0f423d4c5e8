"""A family of models: all that the trainer must know of a kind of model, behind one protocol.

Engine, trainer, checkpoints and planning ask the object of a run's family (`imp_ds.families.family_of`), and name no model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, ProcessorMixin
from transformers.utils import logging as transformers_logging

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric
from imp_ds.families.build import build_module, empty_module, meta_module
from imp_ds.families.card import Card
from imp_ds.families.cost_model import CostModel
from imp_ds.families.counted_cost import CountedCost
from imp_ds.families.groups import check_groups
from imp_ds.families.initial import InitialWeights
from imp_ds.families.stored_weights import StoredWeights, check_tokenizer
from imp_ds.families.train_module import TrainModule
from imp_ds.model_settings import FamilySettings
from imp_ds.moe.layer import MoELayer
from imp_ds.tasks import Batch, Task

_AGAIN = "export it again: imp_ds export RUN OUT"


class ModelFamily(ABC):
    """One object for each family; what has a default here serves a model of one sequence for each sample.

    kind: the name in `RunConfig.model.family`.
    Settings: what a recipe sets of the model, whose field `family` has that name.
    Model: the module to train: a TrainModule, and a PreTrainedModel, which is what saves and loads it.
    Processor: the class whose `from_pretrained` loads the processor of a run; its `tokenizer` makes ids of texts.
    commands: of `imp_ds`, those that take an exported model of the family.
    recorded: fields of the configuration that `origins` gives.
    """

    kind: ClassVar[str]
    Settings: ClassVar[type[FamilySettings]]
    Model: ClassVar[type[TrainModule]]
    Processor: ClassVar[type[ProcessorMixin]]
    commands: ClassVar[tuple[str, ...]] = ("eval",)
    recorded: ClassVar[tuple[str, ...]] = ()

    def auto_classes(self) -> dict[str, type]:
        """What an exported folder brings the code of: the classes that load it, by the Auto classes of transformers. None by
        default: such a folder asks for its family's module to be imported."""
        return {}

    def sentence_methods(self, config: PreTrainedConfig) -> dict[str, str]:
        """What a model of `config` embeds, as sentence-transformers calls it, and the method whose `pooler_output` is its
        vector."""
        return {}

    @abstractmethod
    def processor(self, run, readers: dict) -> ProcessorMixin:
        """The processor of a run, made from its configuration and corpus."""

    def config(self, run, processor: ProcessorMixin | None = None) -> PreTrainedConfig:
        """The configuration of the run's model; without a processor one that can be measured, but perhaps not trained."""
        if processor is None:
            return run.model.to_config(run.data.vocab_size, run.tasks)
        return run.model.to_config(len(processor.tokenizer), run.tasks, processor.tokenizer)

    def origins(self, run, saved: dict | None) -> dict:
        """Fields of the configuration that record which models the run took parts from, such as their hashes: by default none.
        Rank 0 calls it when a run starts.

        saved: the configuration in the checkpoint that the run goes on from, with whose fields these have to agree; None: it is
            new. Raises UserError.
        """
        return {}

    def experts(self, config: PreTrainedConfig) -> int:
        """Experts of a MoE layer; 0: none."""
        layers = _moe_layers(meta_module(self.Model, config))
        return max((layer.router.num_experts for layer in layers), default=0)

    def moe_layers(self, config: PreTrainedConfig) -> list[int]:
        """Numbers of the layers that hold experts."""
        return [number for number, block in enumerate(meta_module(self.Model, config).blocks()) if _moe_layers(block)]

    def check(self, run, config: PreTrainedConfig, world_size: int) -> None:
        """Raise UserError for what this family cannot train on so many ranks."""
        cost = self.cost(run)
        tokens = [(task, cost.tokens(task)) for parent in run.tasks for task in parent.variants()]
        for layer in _moe_layers(meta_module(self.Model, config)):
            check_groups(tokens, world_size, layer.grouping.tokens, layer.grouping.examples)
        if run.train.gradient_checkpointing and not self.Model.supports_gradient_checkpointing:
            fix = "--set train.gradient_checkpointing=false"
            raise UserError(f"models of the family {self.kind} keep all activations", got="train.gradient_checkpointing", fix=fix)

    def build(self, config: PreTrainedConfig, *, seed: int, ep_size: int) -> TrainModule:
        """The module to train, fresh, with this rank's experts: weights depend on (seed, name, expert) alone. Raises UserError
        for a module in it that no rule initialises."""
        return build_module(self.Model, config, seed, ep_size)

    def assembly(self, run, config: PreTrainedConfig):
        """In the place of `build`, for a run whose model takes a large part of itself from a folder: as
        `imp_ds.families.uni_moe.assembly.Assembly`; None: there is no such part. Raises UserError."""
        return None

    def empty(self, config: PreTrainedConfig) -> TrainModule:
        """The whole module with all experts, on the CPU, without its weights; what no checkpoint has is filled."""
        return empty_module(self.Model, config)

    def load_parts(self, run, model: TrainModule) -> tuple[list[str], dict[str, tuple[Path, str]]]:
        """Copy into a fresh model what its settings take from elsewhere, where the run has no `train.init_from`: by default
        nothing. Returns lines that report it, and for each parameter that was copied the file and the key there. Raises
        UserError."""
        return [], {}

    def media_features(self, run, model: TrainModule, processor: ProcessorMixin, readers: dict, hashes: dict, report: Callable):
        """What is computed of the corpus' media once, before the first step, for the loader to read in their place
        (`imp_ds.data.media_features.FeatureCache`), or None: by default nothing. All ranks call it.

        Args:
            hashes: of each parameter that is not trained, by its name, what distinguishes its values.
            report: called with (stage, done, total).
        """
        return None

    def load_initial(self, model: TrainModule, folder: Path, processor: ProcessorMixin) -> InitialWeights:
        """Copy the weights of an exported model into a fresh one: all must be there but those that `may_be_fresh`. Raises
        UserError."""
        check_tokenizer(processor.tokenizer, folder)
        stored = StoredWeights(folder, self.name_of)
        return InitialWeights(stored.copy_into(model, self.may_be_fresh), stored.sources(model))

    def may_be_fresh(self, name: str) -> bool:
        """Whether a parameter of the model to train may be missing in the files that `load_initial` reads."""
        return False

    def name_of(self, key: str) -> str:
        """The name in the module to train of a tensor in the files that `load_initial` reads."""
        return key

    def load_export(self, folder: Path) -> tuple[TrainModule, ProcessorMixin]:
        """Model and processor of an exported folder, on the CPU. Raises UserError."""
        transformers_logging.disable_progress_bar()
        parts = {"model": self.Model, "processor": self.Processor}
        load = lambda name, kind: foreign_code.load(  # noqa: E731
            kind, folder, f"the {name} cannot be loaded", fix=_AGAIN, local_files_only=True
        )
        model, processor = (load(name, kind) for name, kind in parts.items())
        return model, processor

    def served_tasks(self, config: PreTrainedConfig, tasks: Collection[str]) -> list[str]:
        """Of these tasks those that a model of `config` can still do, as a merged one may not."""
        return list(tasks)

    def folders(self, run) -> dict[str, str]:
        """The folders of models that the settings of a run name, by field: what `train.init_from` names, by default."""
        return {} if run.train.init_from is None else {"train.init_from": run.train.init_from}

    def cost(self, run) -> CostModel:
        """What the run costs. By default it is counted by running the model on the meta device."""
        return CountedCost(run, meta_module(self.Model, self.config(run)), self.shapes)

    def shapes(self, run, task: Task, samples: int) -> Batch:
        """A batch of so many samples of a task, of one view, on the meta device, by which costs are counted."""
        return text_shapes(task, samples, self.kind)

    def finished(self, model: TrainModule) -> TrainModule:
        """A trained model as it is exported, where it differs from what is trained: by default as it is. May change `model`."""
        return model

    def write_adapter(self, run, model: TrainModule, processor: ProcessorMixin, folder: Path, out: Path) -> None:
        """Write what was trained beside the model's base to `folder`, which will be `out`. Raises UserError where there is no
        such thing."""
        raise UserError(f"models of the family {self.kind} have no adapters", got="--adapter", fix="leave it out")

    def merge(self, model: TrainModule, tasks: list[str] | None) -> nn.Module:
        """The dense model of these tasks' conditions, None: of all. Raises UserError where the family has none."""
        raise UserError(f"models of the family {self.kind} have no conditions to merge", got="--merge", fix="leave it out")

    def save_stock(self, model: TrainModule, processor: ProcessorMixin, folder: Path) -> Card:
        """Write model and processor as classes of transformers, which load without this package; returns the card's sections.
        Raises UserError for what no class of transformers is; by default all models of the family."""
        what = f"models of the family {self.kind} are no classes of transformers"
        raise UserError(what, got="--stock", allowed="family = uni_moe", fix="leave it out")

    def answer(self, model: TrainModule, processor: ProcessorMixin, conversation: list[dict], **how) -> str:
        """What a model says next in a decoded conversation; `how` is that of transformers' `generate`. Raises UserError where
        models of the family do not converse, and for media that this one does not read."""
        raise UserError(f"models of the family {self.kind} do not converse", got="a conversation", allowed="family = uni_moe")

    def card(self, run, config: PreTrainedConfig, results: list[Metric], folder: str) -> Card:
        """The sections of an exported model's card that are the family's own. folder: what its example loads."""
        return Card(about=f"A model of the family `{self.kind}`, trained with `imp_ds` on DeepSpeed.", tags=[self.kind])


def _moe_layers(module: nn.Module) -> list[MoELayer]:
    return [layer for layer in module.modules() if isinstance(layer, MoELayer)]


def text_shapes(task: Task, samples: int, family: str) -> Batch:
    """A batch of texts on the meta device, as the loader gives it, with the targets that the task's objectives need. Raises
    UserError for a task that reads something else."""
    views, needs = task.views, task.needs
    if views.names() != ["text"]:
        what = f"the family {family} does not define what a batch of the task {task.name} is made of"
        raise UserError(what, got=", ".join(views.names()), allowed="text", fix="define ModelFamily.shapes")
    ids_BL = torch.empty(samples, views.text.length, dtype=torch.int64, device="meta")
    wanted = {"label": needs.label, "caption": needs.target_ids, "token_ids": needs.mask_rate}
    targets = {name: ids_BL[:, 0] if name == "label" else ids_BL for name, there in wanted.items() if there}
    return Batch(task.name, {"text": {"input_ids": ids_BL, "attention_mask": ids_BL}}, targets)
