"""ImpConfig: every number that shapes an IMP encoder (Akbari et al., 2023, arXiv 2305.06324)."""

from transformers import PreTrainedConfig

from imp_ds.errors import UserError
from imp_ds.modalities.modality import get_modality, standard_modalities
from imp_ds.modalities.sides import JOINED
from imp_ds.models.imp.conditions import candidate_tasks, causal_tasks, trained_spaces
from imp_ds.models.imp.encoder.prompts import CANDIDATE_PROMPTS, SHARED
from imp_ds.moe.placement import placed_layers
from imp_ds.moe.routers.registry import ROUTERS, default_router, planned_router
from imp_ds.moe.routers.router import Router
from imp_ds.registry import MODALITIES

# width, feed-forward width, layers, heads: the released configurations (`imp/max/projects/imp/config/model.py`);
# `tiny` is ours, for two CPU cores.
MOST_LAYERS = 10_000
SIZES = {
    "tiny": (128, 512, 4, 4),
    "S": (384, 1536, 12, 6),
    "B": (768, 3072, 12, 12),
    "M": (1024, 4096, 12, 16),
    "L": (1024, 4096, 24, 16),
}
EXPERT_ACTIVATIONS = ("gelu", "geglu", "silu")
# of the dense feed-forwards, by their names in transformers; experts call the first one "gelu"
HIDDEN_ACTS = ("gelu_pytorch_tanh", "gelu", "silu")
# what a gate decides by: what differs from token to token, or what is known of a whole segment
DATA_GATES = ("token", "context")
CONSTANT_GATES = ("modality", "task", "attribute")
# options of routers that have a field of their own; others go into router_options
SHARED_OPTIONS = ("capacity_factor", "experts_per_token", "drop_tokens")
# the linear layers of a block that may be conditional, in pairs of which the second may share the first one's decision
LINEAR_PAIRS = (("qkv", "out"), ("up", "down"))
LINEARS = tuple(name for pair in LINEAR_PAIRS for name in pair)


def in_order(names) -> list[str]:
    """Modalities in the order of the registry. Raises UserError for an unknown one."""
    known = [MODALITIES.known(name) for name in names]
    return [name for name in MODALITIES if name in known]


class ImpConfig(PreTrainedConfig):
    """Configuration of `ImpModel` and `ImpForPreTraining`; the defaults are the dense IMP-B.

    Args:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: the encoder.
        qk_norm: LayerNorm on queries and keys; None means on for MoE encoders and off for dense ones, as released.
        hidden_act: activation of the dense feed-forwards: one of HIDDEN_ACTS, of which "gelu" is the exact form, by erf.
        block_biases: whether a block's two norms have biases, and its attention and its feed-forward each one that is added to
            what they give, experts or not. The linear layers themselves have none: behind a norm with a bias they need none.
        hidden_dropout: in training, share of what attention and feed-forwards give that is dropped, drawn from the samples'
            random keys; nothing is dropped without keys.
        modalities: what the encoder reads, in the order of `imp_ds.registry.MODALITIES`; None: `standard_modalities()`.
        vision_patch, vision_max, audio_patch, audio_max, text_max, ...: `{modality}_{option}` is the field `option` of a
            modality's `Options`, whose default it has where it is not given.
        text_length: of the texts of training, in tokens, to which shorter ones were padded; outside of training a text has the
            experts' slots of one of that length, however it is padded. None: of its own words.
        mask_token_id: of the token that stands for a hidden word, and for a whole sequence before the likelihood head.
        end_token_id: of the token that ends a caption.
        common_dim: width of the common spaces in which two modalities meet.
        pairs: unordered modality pairs, of which a side may be several modalities together, "vision+audio"; each owns two
            projections, one for each direction.
        num_experts: experts in each MoE layer; 0 makes a dense encoder.
        moe_layers: which layers are MoE: "all", "first:N", "last:N", "every:N" (the N-th, 2N-th, ...), "four" (0, 4, 8, ...:
            every fourth as Uni-Perceiver-MoE counts), or a list of layer indices from 0.
        gate: what the choice of experts hangs on (Uni-Perceiver-MoE, arXiv 2206.04674): "token", "context" (the token and the
            pooled tokens of its sequence), or, the same for all tokens of a segment, its "modality", its "task", or its
            "attribute"s (see `imp_ds.models.imp.conditions`).
        conditional_linears: None: experts are whole feed-forwards (token and context gates); else which linear layers have
            experts
            instead: of "qkv", "out" (of the attention), "up", "down" (of the feed-forward). Published are all four. With a
            gate that is the same for a segment None means "up" and "down".
        share_decisions: "out" takes the decision of "qkv", and "down" that of "up"; else each linear layer has a gate.
        gate_tasks: the tasks that a "task" gate knows, in the order of their ids; None: those of `objectives`, sorted. Empty for
            other gates.
        expert_intermediate_size: feed-forward width of one expert; None means intermediate_size.
        expert_activation: "gelu" (two matrices, as released), "silu" (two), or "geglu" (three, gated).
        router: how experts are chosen: one of `imp_ds.moe.routers.registry`, or what another module registers there; None: its
            `default_router`.
        router_options: of the router's own options those that have no field below.
        experts_per_token: choices of a token, where tokens choose; drop_tokens: whether an expert keeps
            at most its capacity of them.
        capacity_factor: slots of all experts together, as a multiple of the tokens (where experts choose: the mean number
            of experts per token) or of the tokens' choices (where tokens do).
        group_tokens, group_examples: tokens compete for experts inside a group: a run of whole examples of at most
            this many tokens and this many examples (None: no limit on examples).
        router_z_loss: coefficient of the router z-loss of each MoE layer (released: 1.0).
        router_balance: coefficient of the load-balancing loss of each layer where tokens choose (Switch Transformer: 0.01).
        router_noise: in training, Gaussian noise on the router's logits, in units of 1 / num_experts (V-MoE: 1.0).
        objectives: task name -> the objectives trained on it (see `imp_ds.objectives`); used by ImpForPreTraining.
        prompt_length: deep prompts of each layer (`imp_ds.models.imp.encoder.prompts`); 0: none.
        candidate_prompts: "shared", or "separate": what is of the candidates has prompts of its own.
        merged_conditions: the conditions of a merged model (`imp_ds.families.imp.merging`), which has no experts (num_experts is
            0): each of its conditional linear layers is one plain linear layer for each of them.
    """

    model_type = "imp"

    def __init__(
        self, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, qk_norm=None,
        hidden_dropout=0.0, layer_norm_eps=1e-6, initializer_range=0.02, modalities=None, num_channels=3, vocab_size=32100,
        text_length=None, pad_token_id=0, mask_token_id=None, end_token_id=None, common_dim=1024,
        pairs=(("vision", "text"), ("vision", "audio"), ("audio", "text")), num_experts=0, moe_layers="last:6", gate="token",
        conditional_linears=None, share_decisions=True, gate_tasks=None, router=None, router_options=None, experts_per_token=2,
        drop_tokens=True, expert_intermediate_size=None, expert_activation="gelu", capacity_factor=1.0, group_tokens=2048,
        group_examples=None, router_z_loss=1.0, router_balance=0.01, router_noise=0.0, objectives=None, prompt_length=0,
        candidate_prompts=SHARED, merged_conditions=(), hidden_act=HIDDEN_ACTS[0], block_biases=False,
        temperatures=None, **kwargs,
    ):  # fmt: skip
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.qk_norm = bool(num_experts) if qk_norm is None else qk_norm
        self.hidden_dropout, self.layer_norm_eps, self.initializer_range = hidden_dropout, layer_norm_eps, initializer_range
        self.modalities = in_order(standard_modalities() if modalities is None else modalities)
        self._set_options(kwargs)
        self.num_channels, self.vocab_size, self.text_length = num_channels, vocab_size, text_length
        self.pad_token_id, self.mask_token_id, self.end_token_id = pad_token_id, mask_token_id, end_token_id
        self.common_dim, self.pairs = common_dim, [list(pair) for pair in pairs]
        self.num_experts, self.moe_layers = num_experts, moe_layers if isinstance(moe_layers, str) else list(moe_layers)
        constant = gate in CONSTANT_GATES
        self.gate, self.share_decisions = gate, share_decisions
        self.conditional_linears = ["up", "down"] if conditional_linears is None and constant else conditional_linears
        known_tasks = sorted(objectives or {}) if gate_tasks is None else list(gate_tasks)
        self.gate_tasks = known_tasks if gate == "task" else []
        self.router, self.router_options = router or default_router(constant), dict(router_options or {})
        self.experts_per_token, self.drop_tokens, self.capacity_factor = experts_per_token, drop_tokens, capacity_factor
        self.expert_intermediate_size = expert_intermediate_size or intermediate_size
        self.expert_activation, self.group_tokens, self.group_examples = expert_activation, group_tokens, group_examples
        self.router_z_loss, self.router_balance, self.router_noise = router_z_loss, router_balance, router_noise
        self.objectives = dict(objectives or {})
        self.prompt_length, self.candidate_prompts = prompt_length, candidate_prompts
        self.merged_conditions, self.temperatures = list(merged_conditions), dict(temperatures or {})
        self.hidden_act, self.block_biases = hidden_act, block_biases
        self._check()
        super().__init__(**kwargs)

    def _set_options(self, given: dict) -> None:
        """Take the options of modalities out of `given`. Raises UserError for those of a modality that the model lacks."""
        for name in MODALITIES:
            for option, field in get_modality(name).Options.model_fields.items():
                value = given.pop(f"{name}_{option}", None)
                if name in self.modalities:
                    value = field.default if value is None else value
                    setattr(self, f"{name}_{option}", list(value) if isinstance(value, (list, tuple)) else value)
                elif value is not None:
                    got = f"{name}_{option}, of a model of {', '.join(self.modalities)}"
                    raise UserError("an option of a modality that the model lacks", got=got, fix=f"add {name} to modalities")

    @classmethod
    def from_size(cls, size: str, **overrides) -> "ImpConfig":
        """The configuration of a published size ("S", "B", "M", "L") or of "tiny"."""
        if size not in SIZES:
            raise UserError("unknown model size", got=size, allowed=", ".join(SIZES))
        width, feed_forward, layers, heads = SIZES[size]
        shape = dict(hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads)
        return cls(**{**shape, **overrides})

    @property
    def likelihood_families(self) -> list[str]:
        """The families of tasks that share a scale of the likelihood head; empty where no task uses that head."""
        specs = (spec for entry in self.objectives.values() for spec in entry["objectives"])
        return sorted({spec["family"] for spec in specs if spec.get("family")})

    @property
    def projection_dim(self) -> int:
        """Numbers of the vectors of `ImpModel.get_features` of modalities that are compared, by the name that others look for."""
        spaces = trained_spaces(self)
        return self.common_dim * max(1, len(spaces)) if spaces or self.likelihood_families else self.hidden_size

    @property
    def matryoshka(self) -> list[int]:
        """Of how many first values of a vector in a common space some task has made a vector of its own; ascending."""
        specs = (spec for entry in self.objectives.values() for spec in entry["objectives"])
        return sorted({count for spec in specs for count in spec.get("matryoshka", ())})

    @property
    def moe_layer_indices(self) -> list[int]:
        """Indices (from 0) of the layers that hold experts; empty for a dense or merged encoder."""
        return placed_layers(self.moe_layers, self.num_hidden_layers) if self.num_experts else []

    def conditional_linears_of(self, layer: int) -> list[str]:
        """Which of LINEARS are conditional in a layer: they have experts, or are merged copies."""
        if not (self.conditional_linears and (self.num_experts or self.merged_conditions)):
            return []
        return self.conditional_linears if layer in placed_layers(self.moe_layers, self.num_hidden_layers) else []

    def decides(self, name: str) -> bool:
        """Whether a conditional linear layer has a router of its own."""
        first = next(pair[0] for pair in LINEAR_PAIRS if name in pair)
        return name == first or not self.share_decisions or first not in self.conditional_linears

    @property
    def has_constant_gate(self) -> bool:
        """Whether one decision holds for all tokens of a segment."""
        return self.gate in CONSTANT_GATES

    @property
    def routes_tokens(self) -> bool:
        """Whether each token gets a decision of its own, inside routing groups."""
        return bool(self.num_experts) and not self.has_constant_gate

    @property
    def tokens_compete(self) -> bool:
        """Whether an expert may pass a token by for the sake of another one: of what follows a word, too."""
        return self.routes_tokens and not self.planned_router.is_causal

    @property
    def options_of_router(self) -> dict:
        """What is set of the router, of the options that its class has, here or in `router_options`."""
        own = ROUTERS[self.router].Options.model_fields
        return {name: getattr(self, name) for name in SHARED_OPTIONS if name in own} | self.router_options

    @property
    def planned_router(self) -> Router:
        """The router without weights, to ask how many rows it makes, and whether it is causal."""
        return planned_router(self.router, self.num_experts, self.options_of_router)

    def _check(self):
        if not 1 <= self.num_hidden_layers <= MOST_LAYERS:
            raise UserError("the layers of an encoder", got=self.num_hidden_layers, allowed=f"1 to {MOST_LAYERS}")
        if self.hidden_size % self.num_attention_heads:
            got, fix = f"{self.hidden_size} and {self.num_attention_heads}", "set num_attention_heads to a divisor of hidden_size"
            raise UserError("hidden_size is not divisible by num_attention_heads", got=got, fix=fix)
        if self.expert_activation not in EXPERT_ACTIVATIONS:
            raise UserError("unknown expert_activation", got=self.expert_activation, allowed=", ".join(EXPERT_ACTIVATIONS))
        if self.hidden_act not in HIDDEN_ACTS:
            raise UserError("unknown hidden_act", got=self.hidden_act, allowed=", ".join(HIDDEN_ACTS))
        named, known = {m for pair in self.pairs for side in pair for m in side.split(JOINED)}, ", ".join(self.modalities)
        unknown = named - set(self.modalities)
        if unknown:
            raise UserError("a pair names a modality that the model does not have", got=", ".join(sorted(unknown)), allowed=known)
        for name in self.modalities:
            get_modality(name).check_options(self)
        self._check_prompts()
        self._check_router()
        if self.num_experts:
            self.moe_layer_indices  # raises on a placement that names no layers
            self._check_gate()
            self._check_linears()

    def _check_prompts(self):
        if self.candidate_prompts not in CANDIDATE_PROMPTS:
            raise UserError("unknown candidate_prompts", got=self.candidate_prompts, allowed=", ".join(CANDIDATE_PROMPTS))
        positions = {name: get_modality(name).most_tokens(self) for name in self.modalities}
        shortest = min(positions, key=positions.get)
        if not 0 <= self.prompt_length <= positions[shortest]:
            raise UserError(
                "the prompts of a layer are longer than the positions: they would outnumber the tokens of every input",
                got=f"prompt_length = {self.prompt_length}",
                allowed=f"0 to {positions[shortest]}, the positions of {shortest}; published: 10",
            )  # fmt: skip

    def _check_router(self):
        ROUTERS.known(self.router)
        if twice := [name for name in SHARED_OPTIONS if name in self.router_options]:
            raise UserError("an option has a field of its own", got=f"router_options with {twice[0]}", fix=f"set {twice[0]}")

    def _check_gate(self):
        if self.gate not in (*DATA_GATES, *CONSTANT_GATES):
            raise UserError("unknown gate", got=self.gate, allowed=", ".join((*DATA_GATES, *CONSTANT_GATES)))
        if self.has_constant_gate and not ROUTERS[self.router].serves_conditions:
            raise UserError(
                f"a {self.gate} gate with router {self.router}: all tokens of a segment look alike to it, so an expert has "
                "nothing to choose among", got=f"router = {self.router}", allowed="router = top_k, or a token or context gate",
            )  # fmt: skip
        self.planned_router  # raises on options that do not go with it
        if self.gate == "task":
            self._check_gate_tasks()
        candidates = candidate_tasks(self.objectives)
        if candidates and self.routes_tokens and self.group_examples != 1:
            raise UserError(
                "candidates would depend on each other: they share routing groups, which differ with the number of ranks",
                got=f"task {', '.join(candidates)} with gate = {self.gate}, group_examples = {self.group_examples}",
                allowed="group_examples = 1, or a modality, task or attribute gate", fix="--set model.group_examples=1",
            )  # fmt: skip
        causal = causal_tasks(self.objectives)
        if causal and self.tokens_compete:
            raise UserError(
                "words would see what follows them: whether an expert takes a word hangs on all words of its group",
                got=f"task {', '.join(causal)} with {self.planned_router.describe()}",
                allowed="router = top_k with drop_tokens = false, or a modality, task or attribute gate",
            )  # fmt: skip

    def _check_gate_tasks(self):
        if not self.gate_tasks:
            raise UserError("a task gate without tasks", got="gate_tasks and objectives are empty", fix="name them in gate_tasks")
        if unknown := sorted(self.objectives.keys() - set(self.gate_tasks)):
            raise UserError(
                "the task gate does not know a task that is trained", got=", ".join(unknown),
                allowed=f"gate_tasks = {', '.join(self.gate_tasks)}", fix="add it to gate_tasks, or leave gate_tasks out",
            )  # fmt: skip

    def _check_linears(self):
        if self.conditional_linears is None:
            return
        unknown = [name for name in self.conditional_linears if name not in LINEARS]
        if unknown or not self.conditional_linears:
            allowed = f"some of {', '.join(LINEARS)}"
            raise UserError("conditional_linears names no linear layers", got=self.conditional_linears, allowed=allowed)
        attention = [name for name in LINEAR_PAIRS[0] if name in self.conditional_linears]
        if attention and self.routes_tokens and self.planned_router.drops_tokens:
            raise UserError(
                f"{' and '.join(attention)} of a token that no expert took would be zeros: it would have no query and no answer",
                got=f"conditional_linears = {self.conditional_linears} with {self.planned_router.describe()}",
                allowed="router = top_k with drop_tokens = false, or conditional_linears of up and down alone",
            )  # fmt: skip
        if self.expert_activation != "gelu" or self.expert_intermediate_size != self.intermediate_size:
            raise UserError(
                "conditional linear layers are those of the dense feed-forward: it has no gate, and one width",
                got=f"expert_activation = {self.expert_activation}, expert_intermediate_size = {self.expert_intermediate_size}",
                allowed=f"gelu, and intermediate_size = {self.intermediate_size}",
            )  # fmt: skip
