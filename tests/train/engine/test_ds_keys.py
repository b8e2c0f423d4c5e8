"""Keys of the DeepSpeed configuration: what DeepSpeed would pass over in silence, or die of, is refused with the nearest key."""

import json

import pytest

from imp_ds.errors import UserError
from imp_ds.recipes import get_recipe
from imp_ds.train.engine import ds_config

# keys as DeepSpeed's documentation writes them (config-json), each with a value that it gives
DOCUMENTED = {
    "steps_per_print": 10, "wall_clock_breakdown": True, "memory_breakdown": False, "dump_state": False,
    "prescale_gradients": False, "gradient_predivide_factor": 1.0, "communication_data_type": "fp32",
    "disable_allgather": False, "log_level": "warning", "dataloader_drop_last": False,
    "zero_optimization": {
        "stage": 2, "allgather_partitions": True, "allgather_bucket_size": 5e8, "overlap_comm": False, "reduce_scatter": True,
        "reduce_bucket_size": 5e8, "contiguous_gradients": True, "round_robin_gradients": False, "sub_group_size": 1e9,
        "stage3_prefetch_bucket_size": 5e7, "stage3_param_persistence_threshold": 1e5, "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": False, "zero_hpz_partition_size": 1,
        "ignore_unused_parameters": True, "leaf_module": {"classes": []},
        "offload_param": {"device": "none", "pin_memory": False, "buffer_count": 5, "buffer_size": 1e8},
        "offload_optimizer": {"device": "none", "pin_memory": False, "ratio": 1.0, "buffer_count": 4, "fast_init": False},
    },
    "bf16": {"enabled": False}, "data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": "auto"},
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2,
             "consecutive_hysteresis": False, "min_loss_scale": 1, "auto_cast": False},
    "activation_checkpointing": {"partition_activations": False, "cpu_checkpointing": False, "number_checkpoints": None,
                                 "contiguous_memory_optimization": False, "synchronize_checkpoint_boundary": False,
                                 "profile": False},
    "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": False, "overlap_events": True},
    "flops_profiler": {"enabled": False, "profile_step": 1, "module_depth": -1, "top_modules": 1, "detailed": True,
                       "output_file": None},
    "comms_logger": {"enabled": False, "verbose": False, "prof_all": True, "debug": False, "prof_ops": ["all_reduce"]},
    "tensorboard": {"enabled": False, "output_path": "x", "job_name": "y"},
    "wandb": {"enabled": False, "group": "g", "team": "t", "project": "p"},
    "csv_monitor": {"enabled": False, "output_path": "x", "job_name": "y"},
    "comet": {"enabled": False, "project": "p", "experiment_name": "e"},
    "checkpoint": {"tag_validation": "Warn", "load_universal": False, "use_node_local_storage": False,
                   "parallel_write": {"pipeline_stage": False}},
    "timers": {"throughput": {"enabled": True, "synchronized": True}}, "compile": {"deepcompile": False},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True, "amsgrad": False}},
}  # fmt: skip


def resolve(ds: dict) -> dict:
    return ds_config.resolve(ds, get_recipe("digits"), 1)


def inner_objects(node: dict, path: tuple = ()) -> list[tuple]:
    inner = ((key, value) for key, value in node.items() if isinstance(value, dict))
    return [path, *(found for key, value in inner for found in inner_objects(value, (*path, key)))]


def test_documented_keys_pass():
    assert resolve(DOCUMENTED)["flops_profiler"] == DOCUMENTED["flops_profiler"]


@pytest.mark.parametrize("path", inner_objects(DOCUMENTED), ids=".".join)
def test_an_unknown_key_is_refused_at_every_depth(path):
    ds = json.loads(json.dumps(DOCUMENTED))
    node = ds
    for key in path:
        node = node[key]
    node["no_such_key"] = 1
    with pytest.raises(UserError, match="unknown key.*" + r"\.".join([*path, "no_such_key"])):
        resolve(ds)


@pytest.mark.parametrize(
    ("ds", "named"),
    [
        ({"zero_optimisation": {"stage": 2}}, "did you mean zero_optimization"),
        ({"zero_optimization": {"stage": 2, "overlap_com": True}}, "did you mean overlap_comm"),
        ({"optimizer": {"params": {"betta": [0.9, 0.95]}}}, "did you mean betas"),
        ({"flops_profiler": {"enable": True}}, "did you mean enabled"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, "reduce_bucket_size"),
        ({"zero_optimization": {"stage": 2, "mics_shard_size": 2}}, "MiCS"),
        ({"amp": {"enabled": True}}, "Apex"),
        ({"pipeline": {"stages": 2}}, "no effect"),
        ({"flops_profiler": [1]}, "no object"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "no object"),
        ({"checkpoint": {"tag_validation": "Sometimes"}}, "tag_validation"),
        ({"bf16": {"enabled": "perhaps"}}, "enabled"),
        ({"communication_data_type": "fp7"}, "communication"),
    ],
)
def test_what_deepspeed_would_die_of_or_pass_over_is_refused_at_once(ds, named):
    with pytest.raises(UserError, match=named):
        resolve({"zero_optimization": {"stage": 2}} | ds)


def test_no_optimizer_is_compiled_unless_asked_for_or_needed_by_an_offload():
    found = resolve({"zero_optimization": {"stage": 2}})
    assert found["optimizer"]["params"]["torch_adam"] is True and ds_config.compiles(found) is None
    own = resolve({"zero_optimization": {"stage": 2}, "optimizer": {"params": {"torch_adam": False, "bias_correction": True}}})
    assert "fused_adam" in ds_config.compiles(own)
    offloaded = resolve({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    assert "torch_adam" not in offloaded["optimizer"]["params"] and "cpu_adam" in ds_config.compiles(offloaded)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": ' * 100_000, b"\xff\xfe{", b'{"bf16": ', b"{} // why", b"[1]"])
def test_damaged_json_is_one_message(tmp_path, content):
    (tmp_path / "ds.json").write_bytes(content)
    with pytest.raises(UserError, match="DeepSpeed configuration"):
        ds_config.load(tmp_path / "ds.json")


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "ds.json").write_bytes(b'\xef\xbb\xbf{"bf16": {"enabled": true}}')
    assert ds_config.load(tmp_path / "ds.json") == {"bf16": {"enabled": True}}
