"""The float32 weights and Adam moments that this rank's optimizer holds, whatever form a ZeRO stage keeps them in.

A parameter is seen as one flat array over all of its experts; a rank holds a range of it. Reading and writing ranges needs
no exchange between ranks, and a range does not depend on the number of ranks or the stage, so neither does a checkpoint.
`engine` is an `imp_ds.train.engine.engine.Engine`. What is known of DeepSpeed 0.19.8's insides stands here.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from imp_ds.parallel.full_parameters import full_parameters
from imp_ds.parallel.groups import rank, world_size

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "ema"  # of the weights, where the engine keeps one (`imp_ds.train.engine.weight_average`)


@dataclass(frozen=True)
class Slice:
    """Elements start .. start + n of a parameter of `shape` (all experts included), flattened.

    `tensors` are views [n] of the optimizer's own float32 memory: "weight", "exp_avg", "exp_avg_sq", and of the average: "ema".
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, torch.Tensor]

    @property
    def numel(self) -> int:
        return self.tensors[WEIGHT].numel()

    def narrow(self, start: int, numel: int) -> "Slice":
        """The part of it that begins `start` elements later."""
        narrowed = {kind: value.narrow(0, start, numel) for kind, value in self.tensors.items()}
        return Slice(self.name, self.shape, self.start + start, narrowed)


def slices(engine) -> list[Slice]:
    """All that this rank's optimizer holds, by parameter. At ZeRO 0 replicas hold the same."""
    full_shapes, found = full_parameters(engine.model), []
    for name, parameter in engine.model.named_parameters():
        if not parameter.requires_grad:
            continue
        shape, first = full_shapes[name]
        start, tensors = _held(engine, parameter)
        if tensors:
            average = {} if engine.average is None else {AVERAGE: engine.average.held[name]}
            found.append(Slice(name, shape, first + start, tensors | average))
    return found


def owned_slices(engine) -> list[Slice]:
    """`slices` such that every element is on exactly one rank: replicas take a share each."""
    found = []
    for piece in slices(engine):
        if engine.stage:
            found.append(piece)
            continue
        spread = piece.numel < prod(piece.shape)  # experts: each rank of a group holds others
        copies, own = (world_size() // engine.ep_size, rank() // engine.ep_size) if spread else (world_size(), rank())
        start, stop = piece.numel * own // copies, piece.numel * (own + 1) // copies
        if start < stop:
            found.append(piece.narrow(start, stop - start))
    return found


def _held(engine, parameter: nn.Parameter) -> tuple[int, dict[str, torch.Tensor]]:
    """Where this rank's part of a parameter begins, and its views; no views when it holds nothing of it."""
    if engine.stage == 0:
        state = engine.deepspeed.basic_optimizer.state[parameter]
        views = {WEIGHT: parameter.detach().view(-1), **{key: state[key].view(-1) for key in MOMENTS}}
        return 0, views
    if engine.stage == 3:
        return _held_at_zero3(engine.deepspeed.optimizer, parameter)
    mapping = parameter._hp_mapping
    if mapping is None:
        return 0, {}
    views = {WEIGHT: mapping.get_hp_fragment().detach(), **{key: mapping.get_hp_fragment(key) for key in MOMENTS}}
    return mapping.lp_fragment_address.start, views


def _held_at_zero3(zero, parameter: nn.Parameter) -> tuple[int, dict[str, torch.Tensor]]:
    views, start, numel = {}, 0, 0
    for kind in (WEIGHT, *MOMENTS):
        key = None if kind == WEIGHT else kind
        part, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        # all ranks' partitions are equally long: what the ranks do not divide is padded at the end
        start = zero._get_param_partition_rank(parameter) * part.numel()
        numel = min(part.numel(), parameter.ds_numel - start)
        if numel > 0:
            views[kind] = part.detach()[:numel]
    return start, views


def prepare(engine, adam_steps: int) -> None:
    """Give the inner optimizer zero moments and its step count, as after `adam_steps` steps; `slices` may then be filled.

    A new engine needs it too: ZeRO 1 and 2 look for the moments of all groups when the first group has stepped, and
    never again, so that those of the others could not be read (0.19.8).
    """
    inner = engine.deepspeed.basic_optimizer
    for partition in _partitions(engine):
        state = inner.state[partition]
        state["step"] = _step_count(inner, partition, adam_steps)
        for key in MOMENTS:
            # kept when they are there: DeepSpeed holds views of them
            state[key] = state[key].zero_() if key in state else torch.zeros_like(partition.detach())
    if engine.stage in (1, 2):
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
    if engine.average is not None:
        engine.average.steps = adam_steps


def _step_count(inner: torch.optim.Optimizer, partition: torch.Tensor, adam_steps: int) -> torch.Tensor | int:
    """What the inner optimizer keeps with a partition as the number of its steps."""
    if not isinstance(inner, (torch.optim.Adam, torch.optim.AdamW)):
        return adam_steps
    # torch keeps the count as a tensor, one for each partition: a shared one would be counted up once for each
    return torch.tensor(float(adam_steps), device=partition.device if inner.defaults["fused"] else "cpu")


def _partitions(engine) -> list[torch.Tensor]:
    """The tensors that the inner optimizer steps."""
    if engine.stage == 3:
        return list(engine.deepspeed.optimizer.fp32_partitioned_groups_flat)
    return [p for group in engine.deepspeed.basic_optimizer.param_groups for p in group["params"]]


def refresh_weights(engine) -> None:
    """Bring the weights that the forward uses in line with master weights that were written; all ranks call it."""
    if engine.stage == 3:
        _refresh_zero3_weights(engine.deepspeed.optimizer)
    elif engine.stage:  # at ZeRO 0 they are the same
        engine.deepspeed.optimizer.update_lp_params()


def _refresh_zero3_weights(zero) -> None:
    zero._partition_all_parameters()
    for group, weights in enumerate(zero.fp16_partitioned_groups_flat):
        weights.data.copy_(zero.fp32_partitioned_groups_flat[group].data)
        zero._unflatten_partitioned_parameters(group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
