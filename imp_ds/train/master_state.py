"""Full float32 weights and Adam moments of a parameter, out of and into whatever form a ZeRO stage keeps them in.

What is read is a plain tensor of the parameter's own shape, so a checkpoint knows neither the number of ranks nor the
stage. Every rank calls in the same order: reading gathers. `engine` is an `imp_ds.train.engine.Engine`.
"""

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def read(engine, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """{"weight", "exp_avg", "exp_avg_sq"} of one parameter, float32 on the CPU, in its full shape (an expert slice: this
    rank's experts)."""
    if engine.stage == 0:
        state = engine.deepspeed.basic_optimizer.state[parameter]
        found = {"weight": parameter, **{key: state[key] for key in MOMENTS}}
    else:
        found = {"weight": safe_get_full_fp32_param(parameter)}
        found |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
    shape = parameter.ds_shape if engine.stage == 3 else parameter.shape
    return {key: value.detach().float().cpu().reshape(shape).contiguous().clone() for key, value in found.items()}


def _partitions(engine) -> list[torch.Tensor]:
    """The tensors that the inner optimizer steps."""
    if engine.stage == 3:
        return list(engine.deepspeed.optimizer.fp32_partitioned_groups_flat)
    if engine.stage in (1, 2):
        return list(engine.deepspeed.optimizer.single_partition_of_fp32_groups)
    return [p for group in engine.deepspeed.basic_optimizer.param_groups for p in group["params"]]


def prepare(engine, adam_steps: int) -> None:
    """Give the inner optimizer zero moments and its step count, as after `adam_steps` steps; `write` may then fill them.

    A new engine needs it too: ZeRO 1 and 2 look for the moments of all groups when the first group has stepped, and
    never again, so that those of the others could not be read (0.19.8).
    """
    inner = engine.deepspeed.basic_optimizer
    for partition in _partitions(engine):
        # torch keeps the count as a tensor, one for each partition: a shared one would be counted up once for each
        count = torch.tensor(float(adam_steps)) if isinstance(inner, (torch.optim.Adam, torch.optim.AdamW)) else adam_steps
        state = inner.state[partition]
        state["step"] = count
        for key in MOMENTS:
            # kept when they are there: DeepSpeed holds views of them
            state[key] = state[key].zero_() if key in state else torch.zeros_like(partition.detach())
    if engine.stage in (1, 2):
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def write(engine, parameter: nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
    """Set the float32 weight and moments of one parameter from full tensors, as `read` gives them."""
    for key, value in tensors.items():
        state_key = None if key == "weight" else key
        if engine.stage == 0:
            with torch.no_grad():
                (parameter if state_key is None else engine.deepspeed.basic_optimizer.state[parameter][key]).copy_(value)
        elif engine.stage == 3:
            _write_partition(engine, parameter, value, state_key)
        else:
            parameter.set_full_hp_param(value.to(parameter.device), state_key)


def _write_partition(engine, parameter: nn.Parameter, value: torch.Tensor, state_key: str | None) -> None:
    # DeepSpeed's own setter reads past the end of a tensor that the ranks do not divide; partitions are padded there
    zero = engine.deepspeed.optimizer
    part, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=state_key)
    start = zero._get_param_partition_rank(parameter) * part.numel()
    own = value.flatten()[start : start + part.numel()]
    part.detach()[: own.numel()].copy_(own)
