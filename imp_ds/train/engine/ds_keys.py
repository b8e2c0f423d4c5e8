"""Which keys DeepSpeed's configuration may hold, at every depth, and what DeepSpeed itself checks of their values.

DeepSpeed 0.19.8 passes over most keys that it does not know, and what is misspelt is then not done. Sections that are records of
its own are read from these; the others are looked up by name in its code, and stand here.
"""

import inspect
import logging
import typing

from pydantic import BaseModel, ValidationError

from imp_ds.errors import UserError
from imp_ds.overrides import nearest

_VALUES = """
    train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps managed_gradient_accumulation steps_per_print
    gradient_clipping gradient_predivide_factor gradient_allreduce_op prescale_gradients communication_data_type
    seq_parallel_communication_data_type disable_allgather dump_state disable_python_gc wall_clock_breakdown memory_breakdown
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer dataloader_drop_last log_level use_data_before_expert_parallelism
""".split()
_SECTIONS = {
    "optimizer": "type params legacy_fusion",
    "activation_checkpointing": """partition_activations number_checkpoints contiguous_memory_optimization
        synchronize_checkpoint_boundary profile cpu_checkpointing""",
    "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file",
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
    "checkpoint": "tag_validation checkpoint_serialization load_universal use_node_local_storage parallel_write writer",
    "checkpoint.parallel_write": "pipeline_stage",
    "checkpoint.writer": "type io_buffer_size io_buffer_double io_multiplier show_statistics data_parallel decoupled",
    "timers": "throughput",
}
# parts of DeepSpeed that this trainer does not run: their keys would have no effect
_UNUSED = (
    "autotuning", "data_efficiency", "datastates", "datastates_ckpt", "hybrid_engine", "pipeline", "sequence_parallel_size",
    "tensor_parallel", "vocabulary_size", "weight_quantization",
)  # fmt: skip

# known keys, which `check_layout` refuses with their reasons
REFUSED_BY_LAYOUT = ("scheduler", "elasticity", "torch_autocast", "expert_parallel")


def check_keys(ds: dict) -> None:
    """Raise UserError for a key that DeepSpeed, or this trainer's use of it, does not know, with the nearest known ones."""
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS as REMOVED
    from deepspeed.runtime.config import _REMOVED_ZERO_CONFIG_KEYS as REMOVED_OF_ZERO

    removed = [(key, why) for key, why in REMOVED.items() if key in ds and key not in REFUSED_BY_LAYOUT]
    zero = ds.get("zero_optimization", {})
    removed += [(f"zero_optimization.{key}", why) for key, why in REMOVED_OF_ZERO.items() if key in zero]
    for path, why in removed:
        raise UserError("DeepSpeed has no such setting any more", got=path, allowed=why, fix="delete it")
    for key in _UNUSED:
        if key in ds:
            raise UserError("this trainer does not use that part of DeepSpeed", got=key, fix="delete it: it would have no effect")
    records = _records()
    _check(ds, "", [*_VALUES, *REFUSED_BY_LAYOUT, *(path for path in [*_SECTIONS, *records] if "." not in path)])
    for path, names in _SECTIONS.items():
        if (section := _section(ds, path)) is not None:
            _check(section, f"{path}.", names.split())
    for path, record in records.items():
        if (section := _section(ds, path)) is not None:
            _check_record(section, f"{path}.", record)
    if params := _section(ds, "optimizer.params"):
        _check(params, "optimizer.params.", _optimizer_params(ds, params))


def check_values(ds: dict) -> None:
    """Raise UserError for what DeepSpeed's own reader of a complete configuration would end the process for."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.utils import logger

    level = logger.level
    logger.setLevel(logging.ERROR)  # it logs every default
    try:
        # without the product of ranks and batch, which it takes from a group that is not there yet
        DeepSpeedConfig({key: value for key, value in ds.items() if key != "train_batch_size"})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"wrong value in the DeepSpeed configuration, {error.title}: {path}", got=repr(first["input"]), allowed=first["msg"]
        ) from None
    except Exception as error:  # assertions, and whatever a wrong type leads to
        raise UserError("DeepSpeed refuses its configuration", got=f"{type(error).__name__}: {error}") from None
    finally:
        logger.setLevel(level)


def offloads(ds: dict) -> bool:
    """Whether the optimizer's state is kept outside of the device."""
    zero = ds.get("zero_optimization", {})
    section = zero.get("offload_optimizer") or {}
    return isinstance(section, dict) and section.get("device", "none") != "none" or bool(zero.get("cpu_offload"))


def _records() -> dict[str, type[BaseModel]]:
    """The sections that are records of DeepSpeed's, by path."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config,
        "comms_logger": CommsLoggerConfig, "compile": CompileConfig, "tensorboard": TensorBoardConfig, "wandb": WandbConfig,
        "csv_monitor": CSVConfig, "comet": CometConfig, "timers.throughput": DeepSpeedThroughputTimerConfig,
    }  # fmt: skip


def _section(ds: dict, path: str) -> dict | None:
    """The object at a path; None where there is none. Raises UserError for another type."""
    node, so_far = ds, []
    for key in path.split("."):
        if key not in node:
            return None
        node, so_far = node[key], [*so_far, key]
        if not isinstance(node, dict):
            raise UserError(f"{'.'.join(so_far)} of the DeepSpeed configuration is no object", got=repr(node), allowed="{...}")
    return node


def _check(section: dict, prefix: str, known: list[str]) -> None:
    for key in section:
        if key not in known:
            raise UserError(f"unknown key in the DeepSpeed configuration: {prefix}{key}", got=key, allowed=nearest(key, known))


def _check_record(section: dict, prefix: str, record: type[BaseModel]) -> None:
    """The keys of a record, by field name or alias, and of the records in it."""
    fields = {name: field for key, field in record.model_fields.items() for name in (key, field.alias) if name is not None}
    _check(section, prefix, list(fields))
    for key, value in section.items():
        inner = [kind for kind in (fields[key].annotation, *typing.get_args(fields[key].annotation)) if inspect.isclass(kind)]
        inner = [kind for kind in inner if issubclass(kind, BaseModel)]
        if inner and value is not None:
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{key} of the DeepSpeed configuration is no object", got=repr(value), allowed="{...}")
            _check_record(value, f"{prefix}{key}.", inner[0])


def _optimizer_params(ds: dict, params: dict) -> list[str]:
    """What the AdamW takes that DeepSpeed will build: PyTorch's, its own, or that of an offload."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    kind = torch.optim.AdamW if params.get("torch_adam") else DeepSpeedCPUAdam if offloads(ds) else FusedAdam
    names = [name for name in inspect.signature(kind).parameters if name not in ("params", "model_params", "adamw_mode")]
    return list(dict.fromkeys([*names, "torch_adam", "adam_w_mode"]))
