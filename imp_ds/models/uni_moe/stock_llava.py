"""A Uni-MoE that reads images alone as transformers' own LLaVA, for programs that know that alone: the class
`LlavaForConditionalGeneration`, with a language model that may have experts, and its `LlavaProcessor`.

LLaVA has one tower of images, whose tokens go one by one through two linear layers. Its embedding needs a row for the
placeholder, and for what else the tokenizer knows: rows of zeros are added, in the head too, and generation never takes them.

Shapes: V rows of the vocabulary, D width of the language model, S width of the tower.
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import save_torch_state_dict
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor

from imp_ds.errors import UserError
from imp_ds.models.uni_moe.configuration_uni_moe import MEDIA
from imp_ds.models.uni_moe.modeling_uni_moe import UniMoeForConditionalGeneration
from imp_ds.models.uni_moe.processing_uni_moe import UniMoeProcessor
from imp_ds.models.uni_moe.stock_model import stock_config, stock_state

# of each kind of tower: which of its tokens LLaVA takes, and how many beside the patches it has
_TOWERS = {"clip_vision_model": ("default", 1), "siglip_vision_model": ("full", 0)}


def save_stock_llava(
    model: UniMoeForConditionalGeneration, processor: UniMoeProcessor, folder: str | Path, max_shard_size: str = "5GB"
) -> None:
    """Write both so that `AutoModelForImageTextToText` and `AutoProcessor` load them without this package.

    Raises UserError, with every reason, for a model that LLaVA is not.
    """
    config = llava_config(model, len(processor.tokenizer))
    state, rows = _state(model, config), config.text_config.vocab_size
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size)
    config.save_pretrained(folder)
    stock_generation(model, rows).save_pretrained(folder)
    strategy, beside = _TOWERS[config.vision_config.model_type]
    LlavaProcessor(
        processor.image_processor, processor.tokenizer, patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy, chat_template=processor.chat_template, image_token=processor.image_token,
        num_additional_image_tokens=beside,
    ).save_pretrained(folder)  # fmt: skip


def stock_generation(model: UniMoeForConditionalGeneration, rows: int) -> GenerationConfig:
    """How it generates, where its vocabulary has so many rows: no answer has a placeholder in it, or a row that was added."""
    generation = copy.deepcopy(model.generation_config)
    placeholders = [token for kind in MEDIA if (token := model.config.token_id(kind)) is not None and token < rows]
    never = {*range(model.config.text_config.vocab_size, rows), *placeholders, *(generation.suppress_tokens or [])}
    generation.suppress_tokens = sorted(never) or None
    return generation


def llava_config(model: UniMoeForConditionalGeneration, tokens: int) -> LlavaConfig:
    """The configuration of the LLaVA that a model is. tokens: of its tokenizer. Raises UserError for a model that it is not."""
    own = model.config
    if problems := _problems(own):
        raise UserError(
            "transformers' LLaVA is not this model", got="; ".join(problems),
            allowed="images alone, by CLIP or SigLIP, with a connector of the kind mlp2x_gelu or linear and pool 1",
            fix="export it without --stock: it loads by from_pretrained after import imp_ds",
        )  # fmt: skip
    tower, text = own.tower_config(own.towers["image"]), stock_config(model.language_model)
    text.vocab_size = max(own.text_config.vocab_size, tokens)
    config = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=own.image_token_id, vision_feature_layer=own.feature_layer,
        vision_feature_select_strategy=_TOWERS[tower.model_type][0], image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        projector_hidden_act="linear" if own.connectors["image"]["kind"] == "linear" else "gelu",
        tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip
    config.architectures, config.dtype = ["LlavaForConditionalGeneration"], model.dtype
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(own, name, None))
    return config


def _problems(config) -> list[str]:
    found = [f"it reads {kind}" for kind in config.towers if kind != "image"]
    if "image" not in config.towers:
        return [*found, "it reads no images"]
    tower, connector = config.tower_config(config.towers["image"]), config.connectors["image"]
    if tower.model_type not in _TOWERS:
        found.append(f"a tower of the kind {tower.model_type}")
    if tower.model_type == "siglip_vision_model" and config.feature_layer == -1:
        found.append("feature_layer = -1 of SigLIP, which is read after its last norm, and by LLaVA before it")
    if connector["kind"] not in ("mlp2x_gelu", "linear"):
        found.append(f"a connector of the kind {connector['kind']}")
    elif connector.get("pool", 1) not in (1, [1, 1]):
        found.append(f"a connector that pools, {connector['pool']}")
    return found


def _state(model: UniMoeForConditionalGeneration, config: LlavaConfig) -> dict[str, torch.Tensor]:
    """All weights by LLaVA's names."""
    state, rows = {}, config.text_config.vocab_size
    for name, tensor in stock_state(model.language_model, config.text_config).items():
        if name.startswith("model."):
            name = f"model.language_model.{name.removeprefix('model.')}"
        if name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
            tensor = F.pad(tensor, (0, 0, 0, rows - len(tensor)))  # [V, D]
        state[name] = tensor
    tower, projector = model.tower("image").model.state_dict(), _projector(model.connectors["image"])
    parts = {"vision_tower": tower, "multi_modal_projector": projector}
    return state | {f"model.{part}.{name}": tensor for part, own in parts.items() for name, tensor in own.items()}


def _projector(connector: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Two linear layers; of a connector that is one, the second is the identity."""
    own = connector.state_dict()
    if "projection.weight" not in own:
        names = {"up": "linear_1", "down": "linear_2"}
        return {f"{names[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in own.items()}
    weight_DS, bias_D = own["projection.weight"], own["projection.bias"]
    second = {"weight": torch.eye(len(weight_DS), dtype=weight_DS.dtype), "bias": torch.zeros_like(bias_D)}
    first = {"linear_1.weight": weight_DS, "linear_1.bias": bias_D}
    return first | {f"linear_2.{name}": tensor for name, tensor in second.items()}
