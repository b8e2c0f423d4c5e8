"""Experts from named slots: expert i of every layer with experts begins as the feed-forward of the i-th slot's model.

A slot's model is a dense language model, or an exported one of ours without experts, of the shape of the language model that all
the rest comes from. What a slot was filled with is kept in config.json and in every checkpoint, by the sha256 of its weights.
"""

import hashlib
from pathlib import Path

from transformers import PreTrainedConfig

from imp_ds.errors import UserError
from imp_ds.families.uni_moe.base_folder import BaseFolder
from imp_ds.families.uni_moe.parts import part_config
from imp_ds.json_files import read_json
from imp_ds.models.uni_moe.upcycling import LAYOUTS, ExpertSource, layout_of

FIELD = "model.experts"
_SAME = ("hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act")


def slot_sources(slots: dict[str, str], saved: dict[str, dict] | None = None) -> dict[str, dict]:
    """Of each slot {"expert": number of the expert, "source": its folder, "step": optimizer steps of the model there, None where
    it does not say, "sha256": of its weights}.

    saved: what a checkpoint has of them, with which they have to agree. Raises UserError that names the slot.
    """
    if saved is not None and (before := sorted(saved, key=lambda slot: saved[slot]["expert"])) != list(slots):
        got, allowed = (", ".join(names) or "none" for names in (slots, before))
        raise UserError(f"{FIELD}: the slots are not those that the run began with", got=got, allowed=allowed)
    found = {}
    for number, (slot, folder) in enumerate(slots.items()):
        files = _weights(slot, Path(folder))
        step = read_json(Path(folder) / "config.json", dict).get("trained_steps")
        found[slot] = {"expert": number, "source": folder, "step": step, "sha256": _sha256(files)}
        if saved is not None and saved[slot]["sha256"] != found[slot]["sha256"]:
            raise UserError(
                f"{FIELD}.{slot}: the model that the run's experts were made from was changed",
                got=f"{folder}: sha256 {found[slot]['sha256']}",
                allowed=f"{saved[slot]['source']}: sha256 {saved[slot]['sha256']}",
                fix="put that model back, or start a new run",
            )  # fmt: skip
    return found


def check_slots(slots: dict[str, str], text_config: PreTrainedConfig) -> None:
    """Raise UserError that names the slot for a model that is not there, or of another shape than the language model."""
    for slot, folder in slots.items():
        config = part_config(folder, f"{FIELD}.{slot}")
        for name in _SAME:
            here, wanted = getattr(config, name, None), getattr(text_config, name, None)
            if here != wanted:
                raise UserError(
                    f"{FIELD}.{slot}: its model has another {name} than the language model", got=f"{folder}: {here}",
                    allowed=wanted, fix="a model that was trained from the same one",
                )  # fmt: skip


class Slots:
    """The models of the slots, which give the experts of a mixture."""

    def __init__(self, slots: dict[str, str], *, noise: float, seed: int):
        self._names, self._drawn = list(slots), dict(noise=noise, seed=seed)
        self._folders = [BaseFolder(folder, f"{FIELD}.{slot}") for slot, folder in slots.items()]

    def sources(self, layer: str, feed_forward: int) -> list[tuple[BaseFolder, ExpertSource]]:
        """Where the experts of a layer come from, in their order. Raises UserError for a model with experts of its own."""
        found = []
        for name, folder in zip(self._names, self._folders):
            layout = layout_of(folder.places.keys(), layer)
            if layout is not LAYOUTS["dense"]:
                raise UserError(
                    f"{FIELD}.{name}: its model has experts of its own", got=f"{folder.folder}: {layer}{layout.down}",
                    allowed="a dense language model",
                )  # fmt: skip
            found.append((folder, ExpertSource(folder.read, layer, layout, feed_forward, **self._drawn)))
        return found

    def close(self) -> None:
        for folder in self._folders:
            folder.close()


def _weights(slot: str, folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise UserError(
            f"{FIELD}.{slot} is not there", got=folder, allowed="a folder of a model, with config.json and safetensors",
            fix=f"put the model back, or --set '{FIELD}=" + '{"' + slot + '": "FOLDER", ...}' + "'",
        )  # fmt: skip
    return files


def _sha256(files: list[Path]) -> str:
    """Of one file its own; of several that of the lines that the program sha256sum prints of them."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    if len(found) == 1:
        return next(iter(found.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in found.items()).encode()).hexdigest()
