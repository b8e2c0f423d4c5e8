"""ImpConfig: every number that shapes an IMP encoder (Akbari et al., 2023, arXiv 2305.06324)."""

from transformers import PreTrainedConfig

from imp_ds.errors import UserError
from imp_ds.models.imp.conditions import MODALITIES

# width, feed-forward width, layers, heads: the released configurations (`imp/max/projects/imp/config/model.py`);
# `tiny` is ours, for two CPU cores.
SIZES = {
    "tiny": (128, 512, 4, 4),
    "S": (384, 1536, 12, 6),
    "B": (768, 3072, 12, 12),
    "M": (1024, 4096, 12, 16),
    "L": (1024, 4096, 24, 16),
}
EXPERT_ACTIVATIONS = ("gelu", "geglu")


class ImpConfig(PreTrainedConfig):
    """Configuration of `ImpModel` and `ImpForPreTraining`; the defaults are the dense IMP-B.

    Args:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: the encoder.
        qk_norm: LayerNorm on queries and keys; None means on for MoE encoders and off for dense ones, as released.
        hidden_dropout: in training, share of what attention and feed-forwards give that is dropped, drawn from the samples'
            random keys; nothing is dropped without keys.
        vision_patch: frames, height and width of a vision patch; vision_max: the largest clip, in the same units.
        audio_patch: spectrogram frames and mel bins of an audio patch; audio_max: the largest spectrogram.
        text_max: the longest text in tokens.
        common_dim: width of the common spaces in which two modalities meet.
        pairs: unordered modality pairs; each owns two projections, one for each direction.
        num_experts: experts in each MoE layer; 0 makes a dense encoder.
        moe_layers: which layers are MoE: "last:N", "every:N" (the N-th, 2N-th, ...), or a list of layer indices from 0.
        expert_intermediate_size: feed-forward width of one expert; None means intermediate_size.
        expert_activation: "gelu" (two matrices, as released) or "geglu" (three, gated).
        router: "expert_choice" or "top_k" (see `imp_ds.moe`).
        experts_per_token: choices of a token under "top_k"; drop_tokens: whether an expert keeps at most its capacity of them.
        capacity_factor: slots of all experts together, as a multiple of the tokens ("expert_choice": the mean number of
            experts per token) or of the tokens' choices ("top_k").
        group_tokens, group_examples: tokens compete for experts inside a group: a run of whole examples of at most
            this many tokens and this many examples (None: no limit on examples).
        router_z_loss: coefficient of the router z-loss of each MoE layer (released: 1.0).
        router_balance: coefficient of the load-balancing loss of each "top_k" layer (Switch Transformer: 0.01).
        router_noise: in training, Gaussian noise on the router's logits, in units of 1 / num_experts (V-MoE: 1.0).
        objectives: task name -> the objectives trained on it (see `imp_ds.objectives`); used by ImpForPreTraining.
    """

    model_type = "imp"

    def __init__(
        self,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        qk_norm=None,
        hidden_dropout=0.0,
        layer_norm_eps=1e-6,
        initializer_range=0.02,
        vision_patch=(4, 16, 16),
        vision_max=(64, 512, 512),
        num_channels=3,
        audio_patch=(16, 16),
        audio_max=(1024, 128),
        vocab_size=32100,
        text_max=4096,
        pad_token_id=0,
        common_dim=1024,
        pairs=(("vision", "text"), ("vision", "audio"), ("audio", "text")),
        num_experts=0,
        moe_layers="last:6",
        router="expert_choice",
        experts_per_token=2,
        drop_tokens=True,
        expert_intermediate_size=None,
        expert_activation="gelu",
        capacity_factor=1.0,
        group_tokens=2048,
        group_examples=None,
        router_z_loss=1.0,
        router_balance=0.01,
        router_noise=0.0,
        objectives=None,
        **kwargs,
    ):
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.qk_norm = bool(num_experts) if qk_norm is None else qk_norm
        self.hidden_dropout = hidden_dropout
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.vision_patch = list(vision_patch)
        self.vision_max = list(vision_max)
        self.num_channels = num_channels
        self.audio_patch = list(audio_patch)
        self.audio_max = list(audio_max)
        self.vocab_size = vocab_size
        self.text_max = text_max
        self.pad_token_id = pad_token_id
        self.common_dim = common_dim
        self.pairs = [list(pair) for pair in pairs]
        self.num_experts = num_experts
        self.moe_layers = moe_layers if isinstance(moe_layers, str) else list(moe_layers)
        self.router = router
        self.experts_per_token = experts_per_token
        self.drop_tokens = drop_tokens
        self.expert_intermediate_size = expert_intermediate_size or intermediate_size
        self.expert_activation = expert_activation
        self.capacity_factor = capacity_factor
        self.group_tokens = group_tokens
        self.group_examples = group_examples
        self.router_z_loss = router_z_loss
        self.router_balance = router_balance
        self.router_noise = router_noise
        self.objectives = dict(objectives or {})
        self._check()
        super().__init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides) -> "ImpConfig":
        """The configuration of a published size ("S", "B", "M", "L") or of "tiny"."""
        if size not in SIZES:
            raise UserError("unknown model size", got=size, allowed=", ".join(SIZES))
        width, feed_forward, layers, heads = SIZES[size]
        shape = dict(hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads)
        return cls(**{**shape, **overrides})

    @property
    def moe_layer_indices(self) -> list[int]:
        """Indices (from 0) of the layers whose feed-forward is a mixture of experts; empty for a dense encoder."""
        layers = self.num_hidden_layers
        if not self.num_experts:
            return []
        if isinstance(self.moe_layers, str):
            kind, _, count = self.moe_layers.partition(":")
            if kind not in ("last", "every") or not count.isdigit() or not 1 <= int(count) <= layers:
                raise UserError(
                    "moe_layers names no layers",
                    got=self.moe_layers,
                    allowed=f'"last:N", "every:N" with N in 1..{layers}, or a list of indices in 0..{layers - 1}',
                )
            return list(range(layers - int(count), layers)) if kind == "last" else list(range(int(count) - 1, layers, int(count)))
        wrong = [i for i in self.moe_layers if not 0 <= i < layers]
        if wrong or not self.moe_layers:
            raise UserError("moe_layers names unknown layers", got=self.moe_layers, allowed=f"indices in 0..{layers - 1}")
        return sorted(set(self.moe_layers))

    @property
    def router_options(self) -> dict:
        """The options of the chosen router's class, beside those that all routers have."""
        if self.router == "top_k":
            return {"experts_per_token": self.experts_per_token, "drop_tokens": self.drop_tokens}
        return {}

    def _check(self):
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                "hidden_size is not divisible by num_attention_heads", got=f"{self.hidden_size} and {self.num_attention_heads}"
            )
        if self.expert_activation not in EXPERT_ACTIVATIONS:
            raise UserError("unknown expert_activation", got=self.expert_activation, allowed=", ".join(EXPERT_ACTIVATIONS))
        if self.router == "top_k" and self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise UserError(
                "a token cannot choose that many experts", got=f"experts_per_token = {self.experts_per_token}",
                allowed=f"1 to num_experts = {self.num_experts}",
            )  # fmt: skip
        unknown = {m for pair in self.pairs for m in pair} - set(MODALITIES)
        if unknown:
            raise UserError("a pair names an unknown modality", got=", ".join(sorted(unknown)), allowed=", ".join(MODALITIES))
        for name, largest, patch in (("vision", self.vision_max, self.vision_patch), ("audio", self.audio_max, self.audio_patch)):
            if any(a % b for a, b in zip(largest, patch)):
                raise UserError(f"{name}_max is not a multiple of {name}_patch", got=f"{largest} and {patch}")
        self.moe_layer_indices  # raises on a placement that names no layers
