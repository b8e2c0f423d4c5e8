"""The folder of a run, and whose it is.

    run_config.json   the whole RunConfig          checkpoints/  what training resumes from
    processor/        tokenizer and processors     tensorboard/  curves, samples, embeddings
    metrics.jsonl     the same curves as lines     results.json, results.png  the final scores
    results_units.json  of each score its unit, which way it is better, and where it is shown
    answers.jsonl     what was asked and answered, where evaluators keep that
    trackers.json     what trackers call the run, where there are others than TensorBoard; wandb/  files of wandb's own
    report.html       the page that `imp_ds report` writes
    trained.json      the tensors that are trained, of a run that trains a part of the model
    initial_weights.md  what was taken from a published model, of a run that starts from one, name by name
"""

import json
import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.evaluation.picture import PICTURE
from imp_ds.json_files import read_json
from imp_ds.overrides import parse_record
from imp_ds.train import checkpoint
from imp_ds.train.held_out.best import WAITED
from imp_ds.train.run_lock import FILE as LOCK
from imp_ds.train.run_lock import RunLock

RESULTS, RESULTS_UNITS, ANSWERS, TRAINED = "results.json", "results_units.json", "answers.jsonl", "trained.json"
INITIAL = "initial_weights.md"
# what a run makes in its folder, beside run_config.json; interference and captions stand in tensorboard/ and metrics.jsonl too
_MADE = {
    LOCK, FILE_NAME, checkpoint.FOLDER, "processor", "tensorboard", "metrics.jsonl", "rejected.jsonl", RESULTS, PICTURE,
    RESULTS_UNITS, ANSWERS, TRAINED, INITIAL, "interference.json", "interference.png", "trackers.json", "wandb",
    "report.html",
}  # fmt: skip
# what may differ between the start of a run and its continuation: it changes neither the weights nor their order
_FREE = {
    "data.root", "data.workers", "data.prefetch", "data.cache_mb", "data.timeout_s", "train.steps", "train.ep_size",
    "train.gradient_checkpointing", "train.compile", "train.spike_deviations", "train.max_bad_steps", "train.max_rollbacks",
    "train.hang_timeout_s", "train.start_timeout_s",
    "train.report_to", "train.log_every", "train.eval_every", "train.validation_batches", "train.best", "train.patience",
    "train.save_every", "train.keep_checkpoints",
    "train.milestone_every", "train.interference_every", "train.interference_samples", "evaluations", "tasks.*.micro_batches",
}  # fmt: skip
# what may differ too if it is asked for: training goes on otherwise from there, but the weights and moments still fit
_ON_REQUEST = {
    "optimizer", "tasks.*.batch_size", "tasks.*.interval", "tasks.*.weight", "tasks.*.gradient_norm", "data.max_rejected",
    # they may have moved; checkpoints know the hashes of what is read there again
    "train.init_from", "model.experts",
}  # fmt: skip


def claim(output_dir: Path, run: RunConfig, resume: bool, allow_changes: bool = False) -> RunLock:
    """Take an empty or new folder for `run`, or its own again with `resume`; returns the lock that is held on it.

    A run that ended before its first checkpoint is nothing to go on from: its folder is taken anew. A configuration that is lost
    or damaged is restored from the newest complete checkpoint. Raises UserError; nothing is changed then.

    allow_changes: whether the fields of _ON_REQUEST may differ from those of the run that is resumed.
    """
    _check_ours(output_dir)
    if checkpoint.steps(output_dir):
        _check_same(output_dir, run, resume, allow_changes)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = RunLock(output_dir)
        if not checkpoint.steps(output_dir) and (output_dir / FILE_NAME).exists():
            _clear(output_dir)
            print(f"{output_dir} holds a run that ended before its first checkpoint: starting it anew", flush=True)
        run.save(output_dir / FILE_NAME)
    except OSError as error:
        raise UserError(
            "the output folder cannot be written", got=f"{output_dir}: {error.strerror}", fix="make room, or --output_dir DIR"
        ) from None
    return lock


def load_run(output_dir: Path) -> RunConfig:
    """The configuration of the run in a folder; where its file is lost or damaged, that of the newest complete checkpoint.

    Raises UserError where neither can be had.
    """
    try:
        return RunConfig.load(output_dir / FILE_NAME)
    except UserError as error:
        newest = checkpoint.newest(output_dir, lambda message: None)
        if newest is None:
            raise
        print(f"{error.what}: the one of {newest.name} is taken", flush=True)
        return parse_record(RunConfig, checkpoint.Reader(newest).state.get("run"), str(newest))


def is_finished(output_dir: Path, run: RunConfig) -> bool:
    """Whether the run has done all of its steps, or as many as `train.patience` allows, and was scored after them."""
    steps, results = checkpoint.steps(output_dir), output_dir / RESULTS
    if not steps or not results.is_file():
        return False
    try:
        found = read_json(results, dict)
    except UserError:  # it is written again
        return False
    is_out_of_patience = run.train.patience is not None and found.get(WAITED, 0) >= run.train.patience
    return found.get("train/steps") == steps[-1] and (steps[-1] >= run.train.steps or is_out_of_patience)


def _check_ours(output_dir: Path) -> None:
    """Raise UserError for a folder that holds something else than a run."""
    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise UserError("the output folder is a file", got=output_dir, allowed="a new or empty folder", fix="--output_dir DIR")
    there = {path.name for path in output_dir.iterdir()}
    if there - {LOCK} and FILE_NAME not in there and not checkpoint.steps(output_dir):
        raise UserError("the output folder is not empty", got=output_dir, allowed="a new or empty folder", fix="--output_dir DIR")


def _check_same(output_dir: Path, run: RunConfig, resume: bool, allow_changes: bool) -> None:
    if not resume:
        raise UserError(
            "the output folder holds another run", got=output_dir, allowed="a new or empty folder",
            fix="--output_dir DIR for a new run, or --resume auto to go on with this one",
        )  # fmt: skip
    changed = differences(load_run(output_dir), run)
    asked = {path: line for path, line in changed.items() if _among(path, _ON_REQUEST)}
    refused = [line for path, line in changed.items() if path not in asked or not allow_changes]
    if refused:
        more = "" if asked.keys() != changed.keys() else "; with --allow_changes these too"
        raise UserError(
            "the run in the output folder was started differently",
            got="; ".join(refused[:5]) + (f" and {len(refused) - 5} more" if refused[5:] else ""),
            allowed=f"to resume, changes of {', '.join(sorted(_FREE))}; with --allow_changes also of "
            + ", ".join(sorted(_ON_REQUEST)),
            fix=f"resume with the recipe and the --set of that run{more}; or take another --output_dir",
        )  # fmt: skip
    if "train.init_from" in asked and (newest := checkpoint.newest(output_dir, lambda message: None)) is not None:
        checkpoint.Reader(newest, run.train.init_from).check_base()
    for line in asked.values():
        print(f"changed from here on: {line}", flush=True)


def _clear(output_dir: Path) -> None:
    """Remove what a run without a checkpoint has left. Raises UserError where there is something else too."""
    foreign = sorted({path.name for path in output_dir.iterdir()} - _MADE)
    if foreign:
        raise UserError(
            "the output folder holds a run that ended before its first checkpoint, and other things", got=", ".join(foreign[:5]),
            fix="move them away, or take another --output_dir",
        )  # fmt: skip
    for name in _MADE - {LOCK}:
        path = output_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def differences(before: RunConfig, now: RunConfig) -> dict[str, str]:
    """What differs and may not without being asked for, by path: "path: before -> now"."""
    old, new = flat(before.model_dump(mode="json")), flat(now.model_dump(mode="json"))
    fixed = [path for path in sorted(old.keys() | new.keys()) if not _among(path, _FREE)]
    changed = [path for path in fixed if not _same(old.get(path), new.get(path))]
    return {p: f"{p}: {json.dumps(old.get(p))} -> {json.dumps(new.get(p))}" for p in changed}


def _same(before, now) -> bool:
    """Whether two values are equal, or two ways to write one file or folder that is there."""
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return before == now
    try:
        return os.path.samefile(before, now)
    except (OSError, ValueError):
        return False


def _among(path: str, patterns: set[str]) -> bool:
    return any(fnmatchcase(path, pattern) or path.startswith(pattern + ".") for pattern in patterns)


def flat(value, path: str = "") -> dict:
    """What a configuration as JSON holds, by path: "tasks.NAME.batch_size"."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = ((entry.get("name", str(i)), entry) for i, entry in enumerate(value))
    else:
        return {path: value}
    return {key: leaf for name, part in items for key, leaf in flat(part, f"{path}.{name}" if path else name).items()}
