"""What a run of IMP costs, as planning asks for it."""

from collections.abc import Callable

import torch

from imp_ds.config import RunConfig
from imp_ds.costs import FLOAT32, Exchange, Kernel, Parameters, is_of_experts
from imp_ds.families.cost_model import flops_by_task
from imp_ds.families.imp.costs import flops, memory, tokens
from imp_ds.families.imp.costs.flops_experts import expert_rows, linear_widths
from imp_ds.families.imp.costs.frozen import FrozenStep
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.trainable import is_trained
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.tasks import Batch, Task

SHARED = ("imp.blocks.", "imp.norm.")  # what every encoding runs through


class ImpCost:
    """The costs of `run`, for a model of `config`."""

    def __init__(self, run: RunConfig, config: ImpConfig):
        self.run, self.config, self.experts = run, config, config.num_experts
        self._frozen = None
        if run.train.trainable is not None:
            trained = [name for name in parameter_sizes(config) if is_trained(name, run.train.trainable)]
            self._frozen = FrozenStep(config, run.data, trained)

    def sizes(self) -> dict[str, int]:
        return parameter_sizes(self.config)

    def parameters(self, sizes: dict[str, int]) -> Parameters:
        return count_parameters(self.config, sizes)

    def tokens(self, task: Task) -> dict[str, int]:
        return tokens.task_tokens(task, self.config, self.run.data)

    def encodings(self, task: Task) -> int:
        return len(self._encoded(task))

    def kernels(self, task: Task, world: int, value_bytes: int, ep_size: int = 1) -> list[Kernel]:
        if self._frozen is not None:
            return self._frozen.kernels(task, world, value_bytes, ep_size)
        return flops.step_kernels(task, self.config, self.run.data, world, value_bytes, ep_size)

    def flops(self, task: Task, world: int) -> float:
        if self._frozen is not None:
            return world * self._frozen.rank_flops(task, world, alone=False)
        return flops.step_flops(task, self.config, self.run.data, world)

    def rank_flops(self, task: Task, world: int, alone: bool) -> float:
        if self._frozen is not None:
            return self._frozen.rank_flops(task, world, alone)
        return flops.rank_flops(task, self.config, self.run.data, world, alone)

    def batch_flops(self, world: int, alone: bool) -> Callable[[Batch], float]:
        return flops_by_task(self, self.run.tasks, world, alone)

    def activation_bytes(self, task: Task, world: int, value_bytes: int, checkpointing: bool) -> float:
        parts = () if self._frozen is None else (self._frozen.embeds, self._frozen.kept_blocks)
        return memory.activation_bytes(task, self.config, self.run.data, world, value_bytes, checkpointing, *parts)

    def touched(self, task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
        own = [*SHARED, f"objectives.{task.name}."]
        parts = ("embeddings", "pre_encoder", "post_encoder")
        own += [f"imp.{part}.{modality}." for modality in task.views.names() for part in parts]
        own += [prefix for objective in task.objectives for prefix in objective.parameters()]
        return tuple(own), SHARED

    def exchanges(self, task: Task, world: int, rounds: int, value_bytes: int) -> list[Exchange]:
        """The experts' rows, there and back, of all MoE layers and conditional linear layers; or, where one decision holds for a
        segment, the parts of the linear layers' matrices."""
        config, layers, found = self.config, len(self.config.moe_layer_indices), []
        widths = [linear_widths(config, name) for name in config.conditional_linears or ()]
        for sequences in self._encoded(task) if layers else ():
            rows = expert_rows(config, sequences.of_rank(world), sequences.length)
            for in_features, out_features in widths or [(config.hidden_size, config.hidden_size)]:
                if config.has_constant_gate:
                    operation, calls, values = "all_reduce", rounds * layers, in_features * out_features
                else:
                    operation, calls, values = "all_to_all", 2 * rounds * layers, rows * (in_features + out_features)
                found.append(Exchange(operation, rounds * layers * values * value_bytes, calls))
        return found

    def compared(self, task: Task) -> list[Exchange]:
        """Vectors that samples are compared by, and those of candidates: float32, gathered, their gradients scattered back."""
        vectors = sum(objective.compared_vectors() for objective in task.objectives)
        sets = [found.count for found in tokens.candidate_sequences(task, self.config).values() if found.split == "ranks"]
        size = (vectors * task.batch_size + sum(sets)) * self.config.common_dim * FLOAT32
        return [Exchange(operation, size, vectors + len(sets)) for operation in ("all_gather", "reduce_scatter")]

    def _encoded(self, task: Task) -> list:
        """All sequences that a step encodes."""
        sequences = tokens.task_sequences(task, self.config, self.run.data)
        return [*sequences.values(), *tokens.candidate_sequences(task, self.config).values()]


def parameter_sizes(config: ImpConfig) -> dict[str, int]:
    """Elements of each parameter of an ImpForPreTraining, by name, from the meta device."""
    with torch.device("meta"):
        model = ImpForPreTraining(config)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def count_parameters(config: ImpConfig, sizes: dict[str, int]) -> Parameters:
    """Sums over `parameter_sizes`."""
    encoder = sum(n for name, n in sizes.items() if name.startswith(SHARED))
    experts = sum(n for name, n in sizes.items() if is_of_experts(name))
    one_expert = experts // (config.num_experts * len(config.moe_layer_indices)) if config.num_experts else 0
    each = expert_rows(config, 1, config.group_tokens) / config.group_tokens if config.num_experts else 0
    active = encoder - experts + round(each * one_expert * len(config.moe_layer_indices))
    return Parameters(encoder, experts, active, sum(sizes.values()) - encoder, one_expert)
