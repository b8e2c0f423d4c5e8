"""How many tokens a task's view of a sample gives, by modality, and what sequences are made of them: arithmetic that needs
neither samples nor a model."""

import math

from imp_ds.config import AudioSettings
from imp_ds.costs import Sequences
from imp_ds.errors import UserError
from imp_ds.modalities.drop_token import kept_count
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import ObjectiveRecord
from imp_ds.objectives.registry import split_spec
from imp_ds.tasks import AudioView, Task, Views, VisionView


def token_counts(
    views: Views, config: ImpConfig, audio: AudioSettings, *, training: bool = True, whose: str = ""
) -> dict[str, int]:  # fmt: skip
    """Tokens of one sample for each modality in view; with `training`, those that DropToken leaves.

    whose: what stands before the views in a path of the run, for errors: "tasks.NAME.".

    Raises UserError when a view is not a multiple of its patch or larger than the largest that the positions hold.
    """
    counts = {}
    if views.vision is not None:
        patches = _vision_patches(views.vision, config, whose)
        counts["vision"] = kept_count(patches, views.vision.drop_rate if training else 0.0)
    if views.audio is not None:
        patches = _audio_patches(views.audio, config, audio, whose)
        counts["audio"] = kept_count(patches, views.audio.drop_rate if training else 0.0)
    if views.text is not None:
        if views.text.length > config.text_max:
            raise UserError(
                "a text view is longer than the model's texts", got=views.text.length, allowed=f"text_max = {config.text_max}",
                fix=f"change {whose}views.text.length or model.text_max",
            )  # fmt: skip
        counts["text"] = views.text.length
    return counts


def task_tokens(task: Task, config: ImpConfig, audio: AudioSettings) -> dict[str, int]:
    """`token_counts` of a task in training; errors name the task, and an example must fit into a routing group."""
    try:
        counts = token_counts(task.views, config, audio, whose=f"tasks.{task.name}.")
    except UserError as error:
        raise UserError(f"task {task.name}: {error}") from None
    longest = max(counts, key=counts.get)
    if config.routes_tokens and counts[longest] > config.group_tokens:
        raise _too_long(task, config, f"{counts[longest]} tokens of {longest}")
    return counts


def task_sequences(task: Task, config: ImpConfig, audio: AudioSettings) -> dict[str, Sequences]:
    """What a step of `task` encodes of its samples, by the names that objectives have for it. Errors as of `task_tokens`."""
    tokens, found = task_tokens(task, config, audio), {}
    for objective in task.objectives:
        found |= objective.sequences(tokens, task.batch_size)
    longest = max(found, key=lambda name: found[name].length, default=None)
    if longest is not None and config.routes_tokens and found[longest].length > config.group_tokens:
        raise _too_long(task, config, f"{found[longest].length} tokens of {longest}")
    return found


def candidate_sequences(task: Task, config: ImpConfig) -> dict[str, Sequences]:
    """The texts that a step of `task` encodes beside its samples, each set once.

    Where `config` was made without a tokenizer, a token is counted for each word of a name. Raises UserError for names that only
    the data give.
    """
    return {name: sequences for name, (sequences, _) in task_candidates(task, config).items()}


def task_candidates(task: Task, config: ImpConfig) -> dict[str, tuple[Sequences, ObjectiveRecord]]:
    """`candidate_sequences`, with an objective that looks among each set."""
    found = {}
    for objective, spec in zip(task.objectives, config.objectives[task.name]["objectives"]):
        known = split_spec(spec)[1]
        sets = objective.candidate_sequences(config, known, task.source.label_names, task.name)
        found |= {name: (sequences, objective) for name, sequences in sets.items()}
    return found


def _too_long(task: Task, config: ImpConfig, got: str) -> UserError:
    return UserError(
        f"task {task.name}: an example is longer than a routing group",
        got=got,
        allowed=f"model.group_tokens = {config.group_tokens} at most",
        fix="raise model.group_tokens, or use fewer frames, a smaller size or a higher drop_rate",
    )


def _vision_patches(view: VisionView, config: ImpConfig, whose: str) -> int:
    # one frame is repeated to fill a patch
    frames = config.vision_patch[0] if view.frames == 1 else view.frames
    fields = [f"{whose}views.vision.{name}" for name in ("frames", "height", "width")]
    return _grid("vision", (frames, view.height, view.width), config.vision_patch, config.vision_max, fields)


def _audio_patches(view: AudioView, config: ImpConfig, audio: AudioSettings, whose: str) -> int:
    # every hop_length samples give one frame; silence fills the last patch (imp_ds.modalities.audio)
    hops = math.ceil(round(view.seconds * audio.sampling_rate) / audio.hop_length)
    frames = config.audio_patch[0] * math.ceil(hops / config.audio_patch[0])
    fields = [f"{whose}views.audio.seconds", "data.audio.mel_bins"]
    return _grid("audio", (frames, audio.mel_bins), config.audio_patch, config.audio_max, fields)


def _grid(modality: str, size: tuple[int, ...], patch: list[int], largest: list[int], fields: list[str]) -> int:
    """Patches of a view of `size`; `fields` of the run say each of its numbers."""
    if uneven := [field for field, a, b in zip(fields, size, patch) if a % b]:
        raise UserError(
            f"the {modality} view is not a multiple of the patch", got=_by(size), allowed=f"multiples of {_by(patch)}",
            fix=f"change {' and '.join(uneven)}, or model.{modality}_patch",
        )  # fmt: skip
    if large := [field for field, a, b in zip(fields, size, largest) if a > b]:
        raise UserError(
            f"the {modality} view is larger than the model's positions", got=_by(size), allowed=f"at most {_by(largest)}",
            fix=f"a smaller {' and '.join(large)}, or a larger model.{modality}_max",
        )  # fmt: skip
    return math.prod(a // b for a, b in zip(size, patch))


def _by(size) -> str:
    return " x ".join(map(str, size))
