"""Memory of a rank while a language model is loaded from a folder, upcycled and given to the engine, against what it holds then.

    python benchmarks/base_loading.py [--folder DIR] [--out benchmarks/results/base_loading.md]

A Llama of some 400 MB with random weights, whose feed-forwards become four experts in every second layer; two ranks with half
of the experts each, ZeRO 3: once in float32, all of it trained, and once in bfloat16, of which the routers alone are trained.
Beside it stands what building the whole model first takes. Needs some 5 GB of memory, and 1 GB in --folder; two minutes on two
cores."""

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASES = {"float32": 6, "bfloat16": 13}  # type -> layers
TRAINED = {"float32": None, "bfloat16": ["*router*"]}
MODES = {"module by module": False, "whole, then partitioned": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the bases are written")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--dtype", choices=BASES, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "RANK" in os.environ:
        measure(options)
        return
    found = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for dtype, layers in BASES.items():
            megabytes = write_base(Path(folder) / dtype, dtype, layers)
            for mode, whole in MODES.items():
                found.append(dict(dtype=dtype, megabytes=megabytes, mode=mode, ranks=launch(Path(folder), dtype, whole)))
    text = table(found)
    print(text)
    if options.out:
        options.out.write_text(text)


def write_base(folder: Path, dtype: str, layers: int) -> float:
    """A Llama in a folder; returns its size in MB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=16, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="200MB")
    return sum(parameter.nbytes for parameter in model.parameters()) / 1e6


def launch(folder: Path, dtype: str, whole: bool) -> list[dict]:
    """What each rank found, in processes of their own."""
    torchrun = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, __file__, "--folder", str(folder), "--dtype", dtype, *["--whole"] * whole]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def measure(options) -> None:
    import torch.distributed as dist

    from helpers.upcycled_run import config_of, make_run
    from imp_ds.families.uni_moe import family
    from imp_ds.train.engine import ds_config
    from imp_ds.train.engine.engine import start_process_group
    from imp_ds.train.start import start_engine

    device = start_process_group(300)
    run = make_run(
        options.folder / options.dtype, ep_size=2, trainable=TRAINED[options.dtype], moe_layers="every:2", expert_noise=0.0
    )
    ds = ds_config.load(ds_config.default_path(2, "cpu"))
    ds["zero_optimization"]["stage"] = 3
    ds = ds_config.resolve(ds, run, 2)
    if options.whole:
        load_whole(family.UniMoeFamily)
    config = config_of(run)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    engine, _ = start_engine(run, config, ds, device, None, None, options.folder / f"run{options.whole}{options.dtype}")
    peak = memory("VmHWM")
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    found = dict(before=before, peak=peak, after=memory("VmRSS"), held=held(engine))
    (options.folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


def held(engine) -> float:
    """What the rank has of parameters, their float32 copies and the optimizer's moments, in MB."""
    tensors = [getattr(parameter, "ds_tensor", parameter) for parameter in engine.model.parameters()]
    tensors += [
        t for state in engine.deepspeed.optimizer.optimizer.state.values() for t in state.values() if hasattr(t, "nbytes")
    ]
    tensors += [p for group in engine.deepspeed.optimizer.optimizer.param_groups for p in group["params"]]
    tensors += [p.grad for p in tensors if getattr(p, "grad", None) is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()) / 1e6


def load_whole(family) -> None:
    """Make the family build a model in float32 and copy the base into it."""
    from imp_ds.families.uni_moe.assembly import PART, Assembly

    assembly = family.assembly

    def load_parts(self, run, model):
        found: Assembly = assembly(self, run, model.config)
        for name, parameter in model.get_submodule(PART).named_parameters():
            found.weights.fill(name, parameter)
        return [], {}

    family.assembly, family.load_parts = (lambda self, run, config: None), load_parts


def memory(name: str) -> float:
    """A line of the process's status, in MB: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def table(found: list[dict]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers", "safetensors"))
    place = f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, ranks of 1 thread"
    lines = [
        "# Memory of a rank while a base is loaded",
        "",
        f"{place}; Python {platform.python_version()}, {versions}.",
        "A Llama with random weights; its feed-forwards become four experts, copies, in every second layer; two ranks with half",
        "of the experts each, ZeRO 3. `python benchmarks/base_loading.py` makes this file.",
        "",
        "MB of resident memory, of the rank that has more, less what it had before (imports, the process group): at most, while",
        "the model is made, loaded and given to the engine, and afterwards, when free memory has been given back to the system.",
        "Held: bytes of parameters, of their float32 copies and of the optimizer's moments alone. float32: all of it is trained.",
        "bfloat16: the routers alone are trained, by an engine that computes in float32. Whole: each rank makes all of the model",
        "but the others' experts, in the type of the folder, and then hands it to the engine.",
        "",
        "| base | MB | loaded | held | peak | afterwards | peak / afterwards |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        peak, after = (max(rank[key] - rank["before"] for rank in row["ranks"]) for key in ("peak", "after"))
        held = max(rank["held"] for rank in row["ranks"])
        sizes = f"{row['megabytes']:.0f} | {row['mode']} | {held:.0f} | {peak:.0f} | {after:.0f}"
        lines.append(f"| {row['dtype']} | {sizes} | {peak / after:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
