"""LoRA as PEFT's files have it (adapter_config.json, adapter_model.safetensors), out of our layers and back.

PEFT knows the stock model (`imp_ds.models.uni_moe.stock_model`), whose experts are two stacks, gate and up in one. A change of
such a stack has one A and one B of rank R of each expert, so ours of gate and up, each of rank r, are one of rank 2 r, whose B is
block diagonal. PEFT flattens over experts: lora_A [E R, I] by expert first, lora_B [O, R E] by expert last. Where both stacks of
a layer are changed, one wrapper lies in the other: names with `base_layer` in them are those of gate and up.

Shapes: E experts, I inputs and O outputs of a layer, D width, F feed-forward width of an expert, R rank in the files, r ours.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.models.uni_moe.lora import CHANGES, LoraLinear, LoraSettings, changed_layers, linear_layers, stacks_of_experts
from imp_ds.overrides import parse_record
from imp_ds.written_files import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_WITHIN = ("", "language_model.", "model.language_model.")  # how names of a language model begin in a model of several parts
_REFUSED = {  # settings of PEFT that are more than a product of two matrices; what they are where they are off
    "use_dora": (False, None), "lora_bias": (False, None), "bias": ("none", None), "modules_to_save": ([], None),
    "trainable_token_indices": ([], {}, None), "layer_replication": ([], None), "fan_in_fan_out": (False, None),
}  # fmt: skip


class Change(NamedTuple):
    """Of one layer of the stock model: a_ [R, I] and b_ [O, R] of a linear layer, [E, R, I] and [E, O, R] of a stack of experts;
    what is added to the weight is scale * b a."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


def save_adapter(language_model: nn.Module, folder: Path, base: str) -> None:
    """Write the changes of a language model with all of its experts. base: what the adapter belongs to, a folder for
    `from_pretrained`. Raises UserError where nothing is changed."""
    changes = _stock_changes(language_model)
    if not changes:
        raise UserError("the model has no LoRA", got="--adapter", fix="set model.lora, or export the model without --adapter")
    every = [*dict(linear_layers(language_model)), *dict.fromkeys(names[0] for names, _ in stacks_of_experts(language_model))]
    stacks = {name for name, change in changes.items() if change.a.dim() == 3}
    rank = Counter(change.rank for change in changes.values()).most_common(1)[0][0]
    alpha = Counter(change.rank * change.scale for change in changes.values()).most_common(1)[0][0]
    write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True, "r": rank,
        "lora_alpha": _plain(alpha), "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
        "target_modules": _shortened(changes.keys() - stacks, every), "target_parameters": _shortened(stacks, every) or None,
        "rank_pattern": _pattern({name: change.rank for name, change in changes.items() if change.rank != rank}, every),
        "alpha_pattern": _pattern(
            {name: _plain(own) for name, c in changes.items() if (own := c.rank * c.scale) != alpha}, every
        ),
    })  # fmt: skip
    tensors = {}
    for name, change in changes.items():
        path = _peft_path(name, stacks)
        a, b = change.a, change.b
        if name in stacks:
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        tensors |= {f"{PREFIX}{path}.lora_A.weight": a.contiguous(), f"{PREFIX}{path}.lora_B.weight": b.contiguous()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _stock_changes(language_model: nn.Module) -> dict[str, Change]:
    """The changes by the stock model's names, in its order."""
    changes = {}
    for path, layer in changed_layers(language_model):
        if isinstance(layer, LoraLinear):
            changes[path] = Change(layer.lora.A.detach(), layer.lora.B.detach(), layer.lora.scale)
            continue
        path = path.removesuffix(".moe.experts") + ".experts"
        own = dict(layer.lora.named_children())
        if fused := [(place, own[name]) for place, name in enumerate(("w1", "w3")) if name in own]:
            changes[f"{path}.gate_up_proj"] = _fused(fused)
        if "w2" in own:
            changes[f"{path}.down_proj"] = Change(*_turned(own["w2"]), own["w2"].scale)
    return changes


def _turned(change) -> tuple[torch.Tensor, torch.Tensor]:
    return change.A.detach().transpose(1, 2), change.B.detach().transpose(1, 2)


def _fused(parts: list[tuple[int, nn.Module]]) -> Change:
    """Those of gate (place 0) and up (1), or of one of them, as one: ranks add up, and B is block diagonal."""
    scale = parts[0][1].scale
    a, b = [], []
    for place, change in parts:
        a_ERI, b_EFR = _turned(change)
        halves = [torch.zeros_like(b_EFR), torch.zeros_like(b_EFR)]
        halves[place] = b_EFR * (change.scale / scale)
        a, b = [*a, a_ERI], [*b, torch.cat(halves, 1)]
    return Change(torch.cat(a, 1), torch.cat(b, 2), scale)


def _peft_path(name: str, stacks: set[str]) -> str:
    if name not in stacks:
        return name
    path, _, stack = name.rpartition(".")
    inner = stack == "gate_up_proj" and f"{path}.down_proj" in stacks
    return path + ".base_layer" * inner


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _end(name: str) -> str:
    """What follows the number of the layer."""
    parts = name.split(".")
    return ".".join(parts[max((i for i, part in enumerate(parts) if part.isdigit()), default=-1) + 1 :])


def _shortened(names, every: list[str]) -> list[str]:
    """Ends of names, where all layers that have them are meant; else names."""
    left = {_end(name) for name in every if name not in names}
    return list(dict.fromkeys(name if _end(name) in left else _end(name) for name in every if name in names))


def _pattern(values: dict[str, float], every: list[str]) -> dict[str, float]:
    found = {}
    for value in dict.fromkeys(values.values()):
        found |= dict.fromkeys(_shortened({name for name, own in values.items() if own == value}, every), value)
    return found


class Adapter:
    """An adapter's folder, read: PEFT's, or one of ours. Raises UserError for a folder without one, for a damaged file, and for
    what is more than LoRA.

    num_experts: of the model's layers of experts.
    """

    def __init__(self, folder: str | Path, num_experts: int):
        self.folder = Path(folder)
        if missing := [name for name in (CONFIG, WEIGHTS) if not (self.folder / name).is_file()]:
            fix = "model.adapter is a folder that PEFT's save_pretrained, or imp_ds export RUN OUT --adapter, wrote"
            raise UserError("there is no adapter", got=f"{self.folder} without {missing[0]}", fix=fix)
        self.config = read_json(self.folder / CONFIG, dict)
        self._check_kind()
        held = {"lora_alpha": 8, "lora_dropout": 0.0, "alpha_pattern": {}}  # where PEFT's files leave them out
        given = {name: value for name in held if (value := self.config.get(name)) is not None}
        self._settings = parse_record(LoraSettings, held | given, str(self.folder / CONFIG))
        self._stacks = self.config.get("target_parameters") or []
        if not isinstance(self._stacks, list) or not all(isinstance(name, str) for name in self._stacks):
            raise UserError("the adapter cannot be read", got=f"{self.folder / CONFIG}: target_parameters = {self._stacks}")
        try:
            tensors = load_file(self.folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise UserError("the adapter cannot be read", got=f"{self.folder / WEIGHTS}: {error}") from None
        self._changes = self._read(tensors, num_experts)
        self.tensors: dict[str, torch.Tensor] = {}  # by our names in the language model, with all experts
        self._alphas: dict[str, float] = {}
        for name, change in self._changes.items():
            self._take(name, change)

    def _check_kind(self) -> None:
        kind = self.config.get("peft_type", "LORA")
        if kind != "LORA":
            raise UserError("the adapter is of another kind", got=f"{self.folder / CONFIG}: {kind}", allowed="LORA")
        for name, off in _REFUSED.items():
            if (value := self.config.get(name)) not in off:
                got = f"{self.folder / CONFIG}: {name} = {value}"
                raise UserError("the adapter is more than LoRA", got=got, allowed=str(off[0]))

    def _read(self, tensors: dict[str, torch.Tensor], num_experts: int) -> dict[str, Change]:
        pairs: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            path, _, kind = key.removeprefix(PREFIX).replace(".default.weight", ".weight").rpartition(".lora_")
            if kind not in ("A.weight", "B.weight"):
                raise UserError("the adapter holds something that is not LoRA", got=f"{self.folder / WEIGHTS}: {key}")
            pairs.setdefault(self._own_path(path, key), {})[kind[0]] = tensor.float()
        changes = {}
        for path, pair in pairs.items():
            if len(pair) < 2:
                raise UserError("the adapter holds one of two matrices", got=f"{self.folder / WEIGHTS}: {path}")
            name, a, b = path, pair["A"], pair["B"]
            if a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1] or not a.numel():
                got = f"{self.folder / WEIGHTS}: {path}: {list(a.shape)}, {list(b.shape)}"
                raise UserError("the adapter holds matrices that are none of a product", got=got, allowed="[R, in] and [out, R]")
            if path.removesuffix(".base_layer").endswith(".experts"):
                name = self._stack_name(path, pairs.keys())
                if not num_experts or len(a) % num_experts:
                    got = f"{self.folder / WEIGHTS}: {path}: {list(a.shape)}, {list(b.shape)}"
                    raise UserError("the adapter is of another number of experts", got=got, allowed=f"{num_experts} experts")
                a = a.unflatten(0, (num_experts, -1))
                b = b.unflatten(1, (-1, num_experts)).permute(2, 0, 1)
            changes[name] = Change(a, b, self._scale(name, a.shape[-2]))
        return changes

    def _own_path(self, path: str, key: str) -> str:
        for within in _WITHIN:
            rest = path.removeprefix(within)
            if path.startswith(within) and rest.startswith(("model.layers.", "layers.")):
                return rest if rest.startswith("model.") else f"model.{rest}"
        raise UserError("the adapter changes what is no layer of a language model", got=f"{self.folder / WEIGHTS}: {key}",
                        allowed=f"{PREFIX}model.layers.N...")  # fmt: skip

    def _stack_name(self, path: str, paths) -> str:
        own = path.removesuffix(".base_layer")
        targets = [target.rpartition(".")[2] for target in self._stacks]
        inner = own != path or f"{own}.base_layer" not in paths and "gate_up_proj" in targets
        return f"{own}.{'gate_up_proj' if inner else 'down_proj'}"

    def _scale(self, name: str, rank: int) -> float:
        _, alpha = self._settings.of([name])
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _take(self, name: str, change: Change) -> None:
        layer, _, stack = name.rpartition(".experts.")
        if not layer:
            self._put(f"{name}.lora", change.a, change.b, change.scale * change.rank)
            return
        a_EIR, b_ERO = change.a.transpose(1, 2), change.b.transpose(1, 2)
        own, feed_forward, half = f"{layer}.moe.experts.lora", b_ERO.shape[2] // 2, change.rank // 2
        if stack == "down_proj":
            self._put(f"{own}.w2", a_EIR, b_ERO, change.scale * change.rank)
            return
        gate, up = b_ERO.split(feed_forward, 2) if b_ERO.shape[2] == 2 * feed_forward else (b_ERO, b_ERO)
        parts = {"w1": (a_EIR, gate), "w3": (a_EIR, up)}
        if change.rank == 2 * half and not gate[:, half:].any() and not up[:, :half].any():  # of our own, block diagonal
            parts = {"w1": (a_EIR[..., :half], gate[:, :half]), "w3": (a_EIR[..., half:], up[:, half:])}
        for matrix, (a, b) in parts.items():
            self._put(f"{own}.{matrix}", a, b, change.scale * a.shape[-1])

    def _put(self, path: str, a: torch.Tensor, b: torch.Tensor, alpha: float) -> None:
        self.tensors |= {f"{path}.A": a, f"{path}.B": b}
        self._alphas[path] = alpha

    def settings(self) -> LoraSettings:
        """LoRA as the adapter has it, by the names of each layer."""
        ranks = {path: self.tensors[f"{path}.B"].shape[-1 if path.endswith(".lora") else 1] for path in self._alphas}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, self._alphas))
        names = {path: path.removesuffix(".lora").replace(".experts.lora.", ".experts.") for path in ranks}
        return LoraSettings(
            r=rank, lora_alpha=alpha, lora_dropout=self._settings.lora_dropout,
            target_modules=[names[path] for path in ranks if path.endswith(".lora")],
            target_parameters=[names[path] for path in ranks if not path.endswith(".lora")],
            rank_pattern={names[path]: own for path, own in ranks.items() if own != rank},
            alpha_pattern={names[path]: own for path, own in self._alphas.items() if own != alpha},
        )  # fmt: skip

    def of(self, language_model: nn.Module) -> dict[str, torch.Tensor]:
        """The parameters of LoRA in a model, by their names there, of the experts that it holds. It may be on meta. Raises
        UserError where one is missing, or of another shape."""
        found = {}
        firsts = {path: layer.first for path, layer in changed_layers(language_model) if not isinstance(layer, LoraLinear)}
        for name, parameter in language_model.named_parameters():
            if CHANGES not in name:
                continue
            value = self.tensors.get(name)
            if value is not None and (first := firsts.get(name.partition(CHANGES)[0])) is not None:
                value = value[first : first + len(parameter)]
            if value is None or value.shape != parameter.shape:
                got = "nothing" if value is None else str(list(value.shape))
                raise UserError(
                    "the adapter is of another model", got=f"{self.folder}: {name}: {got}", allowed=str(list(parameter.shape)),
                    fix="set model.language_model to the model that the adapter was made for",
                )  # fmt: skip
            found[name] = value
        return found
