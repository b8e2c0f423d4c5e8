"""DeepSpeed's JSON: read it, fill every "auto" from the run, and refuse a literal that disagrees.

The files hold engine facts (ZeRO stage, offload, precision, communication). What the run owns stands there as "auto".
"""

import copy
import json
from pathlib import Path

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.train.engine.ds_keys import check_keys, check_values, offloads
from imp_ds.train.engine.layout import check_layout

_PACKAGE = Path(__file__).resolve().parents[2]
# in an installed package, or at the top of a clone
FOLDER = next((path for path in (_PACKAGE / "ds_configs", _PACKAGE.parent / "ds_configs") if path.is_dir()), _PACKAGE)
_NEVER = 1_000_000_000
# "auto" here means something to DeepSpeed itself
_OWN_AUTO = {"data_types.keep_in_fp32_modules"}


def default_path(ep_size: int, device: str) -> Path:
    """The shipped file for a run that names none: ZeRO 2 for "cpu" or "cuda"."""
    kind = "gpu" if device == "cuda" else "cpu"
    special = FOLDER / f"{kind}_zero2_ep{ep_size}.json"
    return special if special.exists() else FOLDER / f"{kind}_zero2.json"


def load(path: str | Path) -> dict:
    """The JSON of a file; NAME.json and ds_configs/NAME.json are also found where the package has them.

    Raises UserError when it is missing, damaged, holds a key twice, or is no object."""
    path = Path(path)
    if not path.exists() and str(path.parent) in (".", "ds_configs") and (FOLDER / path.name).is_file():
        path = FOLDER / path.name
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except RecursionError:
        raise UserError("the DeepSpeed configuration is nested too deeply", got=path, allowed="one JSON object") from None
    except OSError as error:
        shipped = ", ".join(sorted(p.name for p in FOLDER.glob("*.json")))
        raise UserError(
            "the DeepSpeed configuration cannot be read",
            got=f"{path}: {error.strerror}",
            allowed=f"a JSON file; in ds_configs/: {shipped}",
        ) from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            "the DeepSpeed configuration is not JSON",
            got=f"{path}: {error}",
            allowed="one JSON object",
            fix="correct the file there",
        ) from None
    if not isinstance(found, dict):
        raise UserError(
            "the DeepSpeed configuration is not an object", got=f"{path}: {type(found).__name__}", allowed='{"key": value, ...}'
        )
    return found


def resolve(ds: dict, run: RunConfig, world_size: int) -> dict:
    """A configuration that `deepspeed.initialize` takes: nothing is "auto" or disagrees with `run` or is known to break.

    Raises UserError, before anything is allocated, for all that `check_layout` refuses too.
    """
    ds = copy.deepcopy(ds)
    _check_shape(ds)
    _check_ep_size(ds.pop("imp_ds", {}), run)
    check_keys(ds)
    check_layout(run, world_size, ds)
    for path, value in _owned(run, world_size).items():
        _fill(ds, path, value)
    ds.setdefault("steps_per_print", _NEVER)
    ds.setdefault("zero_allow_untested_optimizer", True)
    if not offloads(ds):
        # DeepSpeed's own AdamW would be compiled at the first step; an offload has no other
        ds["optimizer"]["params"].setdefault("torch_adam", True)
    if left := [path for path in _autos(ds) if path not in _OWN_AUTO]:
        raise UserError(
            'nothing fills this "auto"', got=", ".join(left), allowed=f'"auto" at {", ".join(_owned(run, world_size))}',
            fix="write a value there, or delete the key for DeepSpeed's default",
        )  # fmt: skip
    check_values(ds)
    return ds


def compiles(ds: dict) -> str | None:
    """What the start waits for: which of DeepSpeed's optimizers is compiled under the complete configuration `ds`; None: none."""
    if ds["optimizer"]["params"].get("torch_adam", False):
        return None
    name = "DeepSpeedCPUAdam (cpu_adam)" if offloads(ds) else "FusedAdam (fused_adam)"
    return f"DeepSpeed's {name} is compiled at its first use, in about a minute; that needs a C++ compiler and ninja"


def _owned(run: RunConfig, world_size: int) -> dict[str, object]:
    """What RunConfig owns, by its path in DeepSpeed's configuration."""
    # Tasks differ in batch size; DeepSpeed has one. It uses it for its timers and sample counts only (the loss is a mean,
    # and the loader is ours), so the largest is written, and the counts are an upper bound.
    largest = max(task.batch_size for task in run.tasks)
    optimizer = run.optimizer
    return {
        "train_batch_size": largest,
        "train_micro_batch_size_per_gpu": largest // world_size,
        "gradient_accumulation_steps": 1,  # a step is one batch of one task; parts of it would have fewer negatives
        "gradient_clipping": optimizer.clip,  # always written: left out, it would mean 1.0
        "optimizer.type": "AdamW",
        "optimizer.params.lr": optimizer.peak_rate,  # the trainer sets the rate of each step
        "optimizer.params.betas": list(optimizer.betas),
        "optimizer.params.eps": optimizer.eps,
        "optimizer.params.weight_decay": optimizer.weight_decay,
    }


def _fill(ds: dict, path: str, value: object) -> None:
    """Write `value` at `path` where it is "auto" or absent; refuse anything else."""
    *sections, key = path.split(".")
    place = ds
    for section in sections:
        place = place.setdefault(section, {})
    found = place.get(key, "auto")
    if found != "auto" and found != value:
        raise UserError(
            f"the DeepSpeed configuration and the run disagree about {path}", got=f"{found} in the file, {value} in the run",
            allowed=f'"auto", or {value}', fix=f'write "auto" in the file; the run is changed with --set {_setting(path)}',
        )  # fmt: skip
    place[key] = value


def _setting(path: str) -> str:
    names = {
        "gradient_clipping": "optimizer.clip",
        "lr": "optimizer.peak_rate",
        "betas": "optimizer.betas",
        "eps": "optimizer.eps",
    }
    names |= {"weight_decay": "optimizer.weight_decay", "train_batch_size": "tasks.NAME.batch_size"}
    key = path.split(".")[-1]
    fixed = {"gradient_accumulation_steps", "type"}  # of the trainer's making: no setting changes them
    return "(nothing: it is fixed)" if key in fixed else f"{names.get(key, 'tasks.NAME.batch_size')}=..."


def _check_ep_size(section: dict, run: RunConfig) -> None:
    """Our own section, which gives what a shipped file is meant for: {"imp_ds": {"ep_size": 2}}."""
    unknown = sorted(set(section) - {"ep_size"})
    if unknown:
        raise UserError(
            "unknown key in the section imp_ds of the DeepSpeed configuration", got=", ".join(unknown), allowed="ep_size"
        )
    if section.get("ep_size", run.train.ep_size) != run.train.ep_size:
        raise UserError(
            "the DeepSpeed configuration and the run disagree about ep_size",
            got=f"{section['ep_size']} in the file, {run.train.ep_size} in the run",
            fix=f"--set train.ep_size={section['ep_size']}, or another --deepspeed_config",
        )


def _check_shape(ds: dict) -> None:
    """The sections that are looked into must be objects."""
    sections = {name: ds.get(name, {}) for name in ("imp_ds", "zero_optimization", "optimizer", "bf16", "fp16", "data_types")}
    if isinstance(sections["optimizer"], dict):
        sections["optimizer.params"] = sections["optimizer"].get("params", {})
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise UserError(f"{name} of the DeepSpeed configuration is no object", got=repr(section), allowed="{...}")


def _autos(node: dict, path: str = "") -> list[str]:
    """Paths that still hold "auto"."""
    found = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += _autos(value, f"{path}{key}.")
        elif value == "auto":
            found.append(path + key)
    return found


def _unique(pairs: list, path: Path) -> dict:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise UserError(
            "the DeepSpeed configuration holds a key twice", got=f"{path}: {', '.join(twice)}", fix="delete one of the two"
        )
    return dict(pairs)
