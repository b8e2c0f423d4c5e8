"""Uni-MoE in the Hugging Face layout. Importing this package makes the Auto classes know its parts."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

import imp_ds.models.imp  # noqa: F401  a tower may be one, which the Auto classes must know
from imp_ds.models.uni_moe.configuration_uni_moe import UniMoeConfig
from imp_ds.models.uni_moe.modeling_uni_moe import UniMoeForConditionalGeneration
from imp_ds.models.uni_moe.processing_uni_moe import UniMoeProcessor

AutoConfig.register(UniMoeConfig.model_type, UniMoeConfig, exist_ok=True)
AutoModelForMultimodalLM.register(UniMoeConfig, UniMoeForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(UniMoeConfig, UniMoeForConditionalGeneration, exist_ok=True)
AutoProcessor.register(UniMoeConfig, UniMoeProcessor, exist_ok=True)

__all__ = ["UniMoeConfig", "UniMoeForConditionalGeneration", "UniMoeProcessor"]
