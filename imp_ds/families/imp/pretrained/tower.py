"""A published Transformer tower in a folder of transformers: its sizes, and its tensors by names that do not depend on the model.

safetensors only: nothing is unpickled, and no code of the folder runs (`imp_ds.foreign_code`).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.modalities.modality import TEXT

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# model_type -> the modality of the tower, and the part of the configuration that is the tower's
KINDS = {
    "clip": ("vision", "vision_config"), "clip_vision_model": ("vision", None), "siglip": ("vision", "vision_config"),
    "siglip_vision_model": ("vision", None), "siglip2": ("vision", "vision_config"), "siglip2_vision_model": ("vision", None),
    "vit": ("vision", None), "dinov2": ("vision", None), "dinov2_with_registers": ("vision", None),
    "siglip_text_model": ("text", None), "siglip2_text_model": ("text", None), "clip_text_model": ("text", None),
}  # fmt: skip
_OTHERWISE = {
    "bert": "its norms stand behind the residual sums, ours before what they add to",
    "dinov3_vit": "its positions rotate queries and keys in each layer, ours are added to the tokens",
}
_IN_LAYER = {
    "query": ("self_attn.q_proj", "attention.attention.query", "attention.q_proj"),
    "key": ("self_attn.k_proj", "attention.attention.key", "attention.k_proj"),
    "value": ("self_attn.v_proj", "attention.attention.value", "attention.v_proj"),
    "out": ("self_attn.out_proj", "attention.output.dense", "attention.o_proj"),
    "attention_norm": ("layer_norm1", "layernorm_before", "norm1"),
    "feed_forward_norm": ("layer_norm2", "layernorm_after", "norm2"),
    "up": ("mlp.fc1", "intermediate.dense"),
    "down": ("mlp.fc2", "output.dense"),
}
_SCALES = {"layer_scale1.lambda1": "attention_scale", "layer_scale2.lambda1": "feed_forward_scale"}
_OUTSIDE = {
    "class_token": ("embeddings.class_embedding", "embeddings.cls_token"),
    "registers": ("embeddings.register_tokens",),
    "positions": ("embeddings.position_embedding.weight", "embeddings.position_embeddings"),
    "words": ("embeddings.token_embedding.weight",),
}
_OUTSIDE_PAIRS = {
    "patch": ("embeddings.patch_embedding", "embeddings.patch_embeddings.projection"),
    "embedding_norm": ("pre_layrnorm",),
    "norm": ("post_layernorm", "layernorm", "final_layer_norm"),
}
_NAMES = {
    **{theirs: name for name, every in _OUTSIDE.items() for theirs in every},
    **{
        f"{theirs}.{part}": f"{name}.{part}"
        for pairs in (_OUTSIDE_PAIRS, _IN_LAYER) for name, every in pairs.items()
        for theirs in every for part in ("weight", "bias")
    },
    **_SCALES,
}  # fmt: skip
_LAYER = re.compile(r"(?:encoder\.)?layers?\.(\d+)\.(.+)")
_PREFIXES = ("vision_model.", "vit.", "dinov2.", "dinov2_with_registers.")  # of a tower of pictures
_TEXT_PREFIX = "text_model."
# where the folder has no preprocessor_config.json: mean and spread of the pixels in 0..1
_HALF = ([0.5] * 3, [0.5] * 3)
_PIXELS = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "dinov2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


@dataclass
class Tower:
    """What a folder says of a tower.

    modality: "vision" or "text". grid: rows and columns of its table of positions, or how many positions a text has. mean, std:
    of the pixels in 0..1, by channel. outside: tensors of the folder that are no part of the tower, with their elements.
    """

    folder: Path
    model_type: str
    modality: str
    config: object
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    assumed_pixels: bool = False
    outside: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    _places: dict[str, tuple] = field(default_factory=dict)  # name -> (open file, key)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor by its name here, float64. Raises UserError where it is not there."""
        if name not in self._places:
            raise UserError("the model lacks a weight", got=f"{self.folder}: {name}", fix="save it again with save_pretrained")
        self.used.add(name)
        file, key = self._places[name]
        return file.get_tensor(key).double()

    def key(self, name: str) -> str:
        """What the files call it."""
        return self._places[name][1]

    def unused(self) -> dict[str, int]:
        """Tensors that nothing was taken from, by their names in the files, with their elements."""
        left = {self.key(name): _elements(*place) for name, place in self._places.items() if name not in self.used}
        return left | self.outside

    @property
    def feed_forward(self) -> int:
        ratio = getattr(self.config, "mlp_ratio", None)
        return self.config.intermediate_size if ratio is None else int(ratio * self.config.hidden_size)

    @property
    def grid(self) -> tuple[int, ...]:
        rows = self._shape("positions")[-2] - ("class_token" in self)
        return (rows,) if self.modality == "text" else (round(rows**0.5),) * 2

    @property
    def registers(self) -> int:
        """The class token, and what stands beside it."""
        return ("class_token" in self) + (self._shape("registers")[-2] if "registers" in self else 0)

    def _shape(self, name: str) -> list[int]:
        if name not in self._places:
            raise UserError("the model lacks a weight", got=f"{self.folder}: {name}", fix="save it again with save_pretrained")
        file, key = self._places[name]
        return file.get_slice(key).get_shape()


def is_tower(name: str | Path, *, refused: bool = False) -> bool:
    """Whether `train.init_from` names a model of transformers, not an export of ours: a folder of one of KINDS, or no folder at
    all but what may be a name on the hub. refused: or of a kind of which `open_tower` knows why it is refused."""
    folder = Path(name)
    if not folder.exists():
        return re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) is not None
    if not (folder / CONFIG).is_file():
        return False
    kind = read_json(folder / CONFIG, dict).get("model_type")
    return kind in KINDS or refused and kind in _OTHERWISE


def open_tower(name: str | Path) -> Tower:
    """The tower in a folder, or of a model on the hub; of a model of two towers that of images. No tensor is read yet.

    Raises UserError for a model of another kind, with the reason, for one without safetensors, and for what cannot be read.
    """
    folder = _folder(name)
    what = "the configuration of the model in train.init_from cannot be read"
    config = foreign_code.load(AutoConfig, folder, what, allowed=f"a model of type {', '.join(KINDS)}", local_files_only=True)
    kind = config.model_type
    if kind not in KINDS or getattr(config, "use_swiglu_ffn", False):
        why = "its feed-forwards have a gate, those of a dense encoder here have none" if kind in KINDS else _OTHERWISE.get(kind)
        got = f"{folder}: model_type {kind}" + (f"; {why}" if why else "")
        raise UserError("no encoder here can start from this model", got=got, allowed=f"an export of imp_ds, {', '.join(KINDS)}")
    modality, part = KINDS[kind]
    tower = Tower(folder, kind, modality, config if part is None else getattr(config, part))
    if modality == "vision":
        _read_pixels(tower)
    _open_files(tower)
    return tower


def _folder(name: str | Path) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        patterns = [CONFIG, PREPROCESSOR, "model*.safetensors", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json"]
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except Exception as error:  # of the network, of the hub, of the name
        got = f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        what = "train.init_from is no folder, and not found on the hub"
        raise UserError(what, got=got[:500], fix="download it first, and give the folder") from None


def _read_pixels(tower: Tower) -> None:
    """How the source normalises pixels: as its processor says, or as models of its kind do."""
    tower.mean, tower.std = _PIXELS.get(tower.model_type.split("_")[0], _HALF)
    path = tower.folder / PREPROCESSOR
    tower.assumed_pixels = not path.is_file()
    if tower.assumed_pixels:
        return
    found = read_json(path, dict)
    if not found.get("do_normalize", True):
        tower.mean, tower.std = [0.0] * 3, [1.0] * 3
        return
    for name in ("mean", "std"):
        value = found.get(f"image_{name}", getattr(tower, name))
        good = isinstance(value, list) and len(value) == 3 and all(isinstance(x, (int, float)) for x in value)
        if not good or name == "std" and min(value) <= 0:
            raise UserError(f"{path} has no usable image_{name}", got=value, allowed="three numbers")
        setattr(tower, name, [float(x) for x in value])


def _open_files(tower: Tower) -> None:
    paths, what = sorted(tower.folder.glob("model*.safetensors")), "the weights of train.init_from cannot be read"
    if not paths:
        pickled = any(tower.folder.glob("*.bin"))
        fix = "load it where you trust it, and save it with save_pretrained(folder, safe_serialization=True)" if pickled else None
        got = f"{tower.folder}, with pickled weights alone, which are never opened" if pickled else tower.folder
        raise UserError("train.init_from holds no weights", got=got, allowed="a folder with model.safetensors", fix=fix)
    every = {}
    for path in paths:
        try:
            file = safe_open(path, "pt")
            every |= {key: (file, key) for key in file.keys()}
        except (OSError, SafetensorError) as error:
            raise UserError(what, got=f"{path}: {error}") from None
    prefixes = (_TEXT_PREFIX,) if tower.modality == TEXT else _PREFIXES
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in every)), "")
    for key, place in every.items():
        name = canonical_name(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if name is None:
            tower.outside[key] = _elements(*place)
        else:
            tower._places[name] = place


def canonical_name(key: str) -> str | None:
    """"layers.3.query.weight" for whatever a model calls that tensor; None for one that no tower here has."""
    if found := _LAYER.fullmatch(key):
        name = _NAMES.get(found[2])
        return None if name is None else f"layers.{found[1]}.{name}"
    return _NAMES.get(key)


def _elements(file, key: str) -> int:
    return torch.Size(file.get_slice(key).get_shape()).numel()
