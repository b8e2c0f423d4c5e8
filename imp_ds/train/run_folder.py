"""The folder of a run, and whose it is.

    run_config.json   the whole RunConfig          checkpoints/  what training resumes from
    processor/        tokenizer and processors     tensorboard/  curves, samples, embeddings
    metrics.jsonl     the same curves as lines     results.json, results.png  the final scores
"""

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError

# what may differ between the start of a run and its continuation: it changes neither the weights nor their order
_FREE = {
    "data.root", "data.workers", "data.prefetch", "data.cache_mb", "data.timeout_s", "train.steps", "train.ep_size",
    "train.gradient_checkpointing", "train.compile", "train.spike_deviations", "train.max_bad_steps", "train.max_rollbacks",
    "train.hang_timeout_s", "train.log_every", "train.eval_every", "train.save_every", "train.keep_checkpoints",
    "train.milestone_every", "train.interference_every", "train.interference_samples", "evaluations", "tasks.*.pieces",
}  # fmt: skip


def claim(output_dir: Path, run: RunConfig, resume: bool) -> None:
    """Take an empty or new folder for `run`, or its own again with `resume`. Raises UserError; nothing is changed then."""
    config = output_dir / FILE_NAME
    if config.exists():
        if not resume:
            raise UserError(
                "the output folder holds another run", got=output_dir, allowed="a new or empty folder",
                fix="--output_dir DIR for a new run, or --resume auto to go on with this one",
            )  # fmt: skip
        changed = differences(RunConfig.load(config), run)
        if changed:
            raise UserError(
                "the run in the output folder was started differently",
                got="; ".join(changed[:5]) + (" ..." if changed[5:] else ""),
                allowed="to resume, changes of " + ", ".join(sorted(_FREE)),
                fix="resume with the recipe and the --set of that run, or take another --output_dir",
            )  # fmt: skip
    elif output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError("the output folder is not empty", got=output_dir, allowed="a new or empty folder", fix="--output_dir DIR")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(output_dir, os.W_OK):
            raise PermissionError(13, "Permission denied")
        run.save(config)
    except OSError as error:
        got = f"{output_dir}: {error.strerror}"
        raise UserError("the output folder cannot be written", got=got, fix="--output_dir DIR") from None


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """What differs and may not, as "path: before -> now"."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    paths = sorted(old.keys() | new.keys())
    fixed = [p for p in paths if not any(fnmatchcase(p, free) or p.startswith(free + ".") for free in _FREE)]
    return [f"{p}: {json.dumps(old.get(p))} -> {json.dumps(new.get(p))}" for p in fixed if old.get(p) != new.get(p)]


def _flat(value, path: str = "") -> dict:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = ((entry.get("name", str(i)), entry) for i, entry in enumerate(value))
    else:
        return {path: value}
    return {key: leaf for name, part in items for key, leaf in _flat(part, f"{path}.{name}" if path else name).items()}
