"""A language model with our experts as one of transformers' own, for programs that know those alone: servers, harnesses.

Llama and Mistral with experts in all layers are a Mixtral, Qwen3 with experts in any layers is a Qwen3-MoE; Mixtral and Qwen3-MoE
are what they were.
"""

import copy
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from imp_ds.errors import UserError
from imp_ds.models.uni_moe.experts import ExpertFeedForward, expert_feed_forwards
from imp_ds.models.uni_moe.upcycling import to_base

STOCK = {"mixtral": "mixtral", "llama": "mixtral", "mistral": "mixtral", "qwen3_moe": "qwen3_moe", "qwen3": "qwen3_moe"}


def save_stock_model(language_model: PreTrainedModel, folder: str | Path, max_shard_size: str = "5GB") -> None:
    """Write a causal language model, whose experts are all here, so that `AutoModelForCausalLM.from_pretrained` loads it
    without this package: config.json, generation_config.json and safetensors. Raises UserError for one that no class of
    transformers is."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not expert_feed_forwards(language_model):
        language_model.save_pretrained(folder, max_shard_size=max_shard_size)
        return
    config = stock_config(language_model)
    save_torch_state_dict(stock_state(language_model, config), folder, max_shard_size=max_shard_size)
    config.save_pretrained(folder)
    language_model.generation_config.save_pretrained(folder)


def stock_state(language_model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """The weights of a language model by the names of files of the model of transformers that it is, of `stock_config`. Raises
    UserError for maps before a gate that are not the identity."""
    state = language_model.state_dict()
    if expert_feed_forwards(language_model):
        state = to_base(state, config.model_type)
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def stock_config(language_model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the model of transformers that a language model is, with experts or without. Raises UserError where
    none is."""
    if not expert_feed_forwards(language_model):
        return copy.deepcopy(language_model.config)
    layers, own = [layer.mlp for layer in language_model.get_decoder().layers], language_model.config
    mixtures, kind = expert_feed_forwards(language_model), STOCK.get(own.model_type)
    router, experts = mixtures[0].moe.router, mixtures[0].moe.experts
    dense = [index for index, mlp in enumerate(layers) if not isinstance(mlp, ExpertFeedForward)]
    problem = None
    if kind is None:
        problem = f"a language model of the kind {own.model_type}"
    elif kind == "mixtral" and dense:
        problem = f"{own.model_type} with dense feed-forwards in layers {dense}"
    elif kind == "mixtral" and not router.options.renormalise:
        problem = f"{own.model_type} with norm_topk_prob = False"
    elif kind == "mixtral" and getattr(own, "attention_bias", False):
        problem = f"{own.model_type} with biases in attention"
    if problem:
        allowed = "Llama and Mistral with experts in all layers, Qwen3 with experts in any, Mixtral, Qwen3-MoE"
        raise UserError("no class of transformers is this language model", got=problem, allowed=allowed)
    fields = {name: value for name, value in own.to_dict().items() if name not in ("model_type", "architectures")}
    fields |= {"num_experts_per_tok": router.options.experts_per_token}
    if kind == "mixtral":
        fields |= {"num_local_experts": router.num_experts, "intermediate_size": experts.feed_forward}
        fields.setdefault("sliding_window", None)
    else:
        fields |= {
            "num_experts": router.num_experts, "moe_intermediate_size": experts.feed_forward, "mlp_only_layers": dense,
            "decoder_sparse_step": 1, "norm_topk_prob": router.options.renormalise,
        }  # fmt: skip
    config = AutoConfig.for_model(kind, **fields)
    config.architectures = [{"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}[kind]]
    return config
