"""Tiny language models of transformers with random weights, of the kinds that may be given experts, and experts made of them."""

from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB, WIDTH, HIDDEN = 37, 16, 24
SIZES = dict(
    vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=False,
)  # fmt: skip
DENSE = ("llama", "qwen3", "mistral")
SPARSE = {
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=HIDDEN, norm_topk_prob=False),
}


def language_model(kind: str, seed: int = 0, **changes) -> PreTrainedModel:
    """A fresh one in eval mode, float32."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | SPARSE.get(kind, {}) | changes)).eval()


def expert_settings(**changes) -> SimpleNamespace:
    """What is asked of a configuration where feed-forwards are replaced, all losses off."""
    return SimpleNamespace(**dict(
        num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, moe_layers="all", moe_intermediate_size=None,
        router_aux_loss_coef=0.0, router_z_loss_coef=0.0, router_l1_coef=0.0, router_kl_coef=0.0, expert_preferences=None,
        modality_maps=False,
    ) | changes)  # fmt: skip
