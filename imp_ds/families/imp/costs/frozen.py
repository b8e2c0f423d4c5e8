"""The work of a step of which a part of the model is trained: of each kernel what is really computed.

A product is computed forward; for the gradient of its input, where something before it is trained; and for that of its weights,
where they are trained. Of what has no weights the backward is computed where a gradient goes through it. Nothing is computed
backward before the first thing that is trained.

Shapes: as in `flops`.
"""

from collections.abc import Iterable
from dataclasses import replace

from imp_ds.config import DataSettings
from imp_ds.costs import STATES, VECTORS, Kernel, Sequences, passes, product
from imp_ds.families.imp.costs import flops
from imp_ds.families.imp.costs.flops_experts import EXPERTS, mixture
from imp_ds.families.imp.costs.memory import block_values
from imp_ds.families.imp.costs.tokens import task_candidates, task_sequences, task_tokens
from imp_ds.modalities.modality import get_modality
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import StepShape
from imp_ds.tasks import Task

EVERY = ("",)  # all parameters of where a kernel runs
_WITH_WEIGHTS = ("product", "experts", "routing")


class FrozenStep:
    """Steps of a model of `config` of which the parameters of these names are trained."""

    def __init__(self, config: ImpConfig, data: DataSettings, trained: Iterable[str]):
        self.config, self.data, self._trained = config, data, tuple(trained)
        self._matrices = 3 if config.expert_activation == "geglu" else 2

    def kernels(self, task: Task, world: int, value_bytes: int, ep_size: int = 1) -> list[Kernel]:
        """As `flops.step_kernels`."""
        config, found, samples = self.config, [], task.batch_size // world
        lengths, sets = task_tokens(task, config, self.data), task_candidates(task, config)
        given = flops.patch_values(task.views, config)
        for sequences in (*task_sequences(task, config, self.data).values(), *(candidates for candidates, _ in sets.values())):
            found += self._encoder(sequences, given, sequences.of_rank(world), value_bytes, ep_size)
        needs = self._needs_before(config.num_hidden_layers, task.views.names()) or self._trains("imp.norm.", "imp.post_encoder.")
        for candidates, objective in sets.values():
            some = objective.candidate_kernels(config, candidates.of_rank(world), value_bytes)
            found += self._cut(some, needs, "", objective.parameters())[0]
        counts = {name: candidates.count for name, (candidates, _) in sets.items()}
        shape = StepShape(config, samples, samples * world, lengths, counts, value_bytes)
        for objective in task.objectives:
            own = (f"objectives.{task.name}.", *objective.parameters())
            found += self._cut(objective.kernels(shape), needs, "", own)[0]
        return found

    def rank_flops(self, task: Task, world: int, alone: bool) -> float:
        """As `flops.rank_flops`."""
        if alone:
            task, world = task.model_copy(update={"batch_size": task.batch_size // world}), 1
        return sum(kernel.flops for kernel in self.kernels(task, world, 4))

    def kept_blocks(self, sequences: Sequences, samples: int) -> list[float]:
        """Values that each block keeps for the backward: none before the first thing that is trained, and of a linear layer that
        is not trained not what enters it, unless something else needs that."""
        config, tokens = self.config, samples * sequences.length
        dense, sparse = block_values(config, samples, sequences.length)
        modalities, found = [modality for modality, _ in sequences.segments], []
        for layer in range(config.num_hidden_layers):
            prefix, is_sparse = f"imp.blocks.{layer}.", layer in config.moe_layer_indices
            if not (self._needs_before(layer, modalities) or self._trains(prefix)):
                found.append(0.0)
                continue
            kept = sparse if is_sparse else dense
            if not self._trains(f"{prefix}attention.qkv."):
                kept -= tokens * config.hidden_size
            if not is_sparse:  # the norm's answer, and the activation's
                kept -= 0 if self._trains(f"{prefix}feed_forward.up.") else tokens * config.hidden_size
                kept -= 0 if self._trains(f"{prefix}feed_forward.down.") else tokens * config.intermediate_size
            found.append(kept)
        return found

    def embeds(self, modality: str) -> bool:
        """Whether a modality has a gradient before the blocks."""
        return self._trains(f"imp.embeddings.{modality}.", f"imp.pre_encoder.{modality}.")

    def _trains(self, *prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in self._trained)

    def _needs_before(self, layer: int, modalities: Iterable[str]) -> bool:
        """Whether a gradient goes through what enters a block."""
        return any(map(self.embeds, modalities)) or self._trains(*(f"imp.blocks.{n}." for n in range(layer)))

    def _encoder(self, sequences: Sequences, values: dict[str, int], samples: int, size: int, ep_size: int) -> list[Kernel]:
        """As `flops` has it, layer by layer."""
        config, width, length, found, needs = self.config, self.config.hidden_size, sequences.length, [], False
        for modality, part in sequences.segments:
            embedding = get_modality(modality).kernels(config, samples * part, values[modality], size)
            some, through = self._cut(embedding, False, f"imp.embeddings.{modality}.", EVERY)
            before = [product(samples * part, width, width, size)]
            more, through = self._cut(before, through, f"imp.pre_encoder.{modality}.", EVERY)
            found, needs = found + some + more, needs or through
        shape, linears = (config, samples, length, size), config.conditional_linears or ()
        merged = flops.additional_merges(config, sequences.segments, size, ep_size)
        for layer in range(config.num_hidden_layers):
            if layer not in config.moe_layer_indices:
                block = flops.attention(*shape) + flops.feed_forward(*shape)
            else:
                last = flops.feed_forward(*shape, linears, ep_size) if linears else mixture(*shape, ep_size)
                block = merged + flops.attention(*shape, linears, ep_size) + last
            some, needs = self._cut(block, needs, f"imp.blocks.{layer}.")
            found += some
        tokens = samples * length
        some, needs = self._cut([passes("norm", 5 * tokens * width * size, 1)], needs, "imp.norm.", EVERY)
        found += some
        for modality, part in sequences.segments:
            after = [product(samples * part, width, width, size)]
            found += self._cut(after, needs, f"imp.post_encoder.{modality}.", EVERY)[0]
        return found + self._cut([passes("copy", 6 * tokens * width * size, 4)], needs, "")[0]

    def _cut(self, kernels: list[Kernel], needs: bool, prefix: str, default: tuple[str, ...] = ()) -> tuple[list[Kernel], bool]:
        """Kernels that run one after the other, and whether a gradient goes through what they give.

        needs: whether one goes through what enters them. prefix: of the parameters of where they run. default: what they
        compute with, where the kernels do not say it.
        """
        found, given = [], needs
        for kernel in kernels:
            needs = given if kernel.of == STATES else needs
            parts = default if kernel.of in ((), STATES, VECTORS) else kernel.of
            trained = self._trains(*(prefix + part for part in parts))
            if kernel.kind in _WITH_WEIGHTS and kernel.of != VECTORS:
                of_input = needs and kernel.forward < 0.4  # a product of raw values has two parts, its input has no gradient
                share = kernel.forward * (1 + trained + of_input)
                if kernel.of == EXPERTS and trained and not needs:  # the last matrix has an input that needs one
                    share += kernel.forward / self._matrices
            else:
                share = 1.0 if needs or trained else kernel.forward
            needs = needs or trained
            found.append(replace(kernel, flops=kernel.flops * share, bytes=kernel.bytes * share, forward=kernel.forward / share))
        return found, needs
