"""UniMoeConfig: a language model, the towers that it reads media with, and a connector for each kind of media."""

from transformers import AutoConfig, PreTrainedConfig

from imp_ds.errors import UserError

MEDIA = ("image", "video", "audio")
TOWERS = ("vision", "video", "audio")
_CONNECTORS = ("linear", "mlp2x_gelu", "qformer", "decoder")


class UniMoeConfig(PreTrainedConfig):
    """Uni-MoE (arXiv 2405.11273): towers, connectors and a language model whose feed-forwards may be experts.

    Args:
        text_config: of any causal language model of transformers.
        vision_config, video_config, audio_config: of the towers, by `model_type`; None: there is no such tower.
        towers: which tower reads each kind of media: {"image": "vision", "video": "vision", "audio": "audio"}. Videos that the
            vision tower reads are averaged over their frames. A kind that is missing is not read.
        connectors: of each kind of media, the arguments of `imp_ds.models.uni_moe.connectors.build_connector`.
        grids: of each kind of media, the sizes of the axes of its tower's tokens; None of a kind: a square, or one axis.
        media_shapes: of each kind of media the shapes of the model's inputs of one, by name.
        feature_layer: the hidden layer of vision towers that is read; -1: the last one, after its norm. Published: -2.
        image_token_id, video_token_id, audio_token_id: placeholders, one for each token of a connector.

        num_experts: of a layer with experts; 0: the feed-forwards of the language model as they are.
        num_experts_per_tok: how many of them a token takes; their weights are renormalised where norm_topk_prob.
        moe_layers: "all", "every:N", "first:N", "last:N" or a list of layers from 0.
        moe_intermediate_size: feed-forward width of an expert; None: that of the language model.
        router_aux_loss_coef, router_z_loss_coef: coefficients of the balance loss and the z-loss.
        router_l1_coef, router_kl_coef: of the losses on how modalities share experts (release, 8e).
        expert_preferences: experts that a kind of media prefers, for the L1 loss: {"image": [0, 1]}.
        modality_maps: a linear map for each modality before the gate, the identity at first (release, 8e).
        lora: low-rank changes of layers of the language model, the fields of `imp_ds.models.uni_moe.lora.LoraSettings`; None:
            there are none, as in every exported model.
        expert_sources: of each slot whose model an expert was made from: {"expert": its number, "source": folder, "step",
            "sha256" of its weights}; {}: there are no slots.
        trained_steps: optimizer steps of the run after which the model was exported; None: it was not.
    """

    model_type = "uni_moe"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig, "video_config": AutoConfig, "audio_config": AutoConfig}

    def __init__(
        self, text_config=None, vision_config=None, video_config=None, audio_config=None, *, towers=None, connectors=None,
        grids=None, media_shapes=None, feature_layer=-1, image_token_id=None, video_token_id=None, audio_token_id=None,
        num_experts=0, num_experts_per_tok=2, norm_topk_prob=True, moe_layers="all", moe_intermediate_size=None,
        router_aux_loss_coef=0.0, router_z_loss_coef=0.0, router_l1_coef=0.0, router_kl_coef=0.0,
        expert_preferences=None, modality_maps=False, lora=None, expert_sources=None,
        trained_steps=None, **kwargs,
    ):  # fmt: skip
        self.text_config = _sub_config(text_config) or AutoConfig.for_model("llama")
        self.vision_config, self.video_config = _sub_config(vision_config), _sub_config(video_config)
        self.audio_config = _sub_config(audio_config)
        self.towers = self._default_towers() if towers is None else dict(towers)
        self.connectors = {kind: dict((connectors or {}).get(kind) or {"kind": "mlp2x_gelu"}) for kind in self.towers}
        self.grids, self.media_shapes = dict(grids or {}), dict(media_shapes or {})
        self.feature_layer = feature_layer
        self.image_token_id, self.video_token_id, self.audio_token_id = image_token_id, video_token_id, audio_token_id
        self.num_experts, self.num_experts_per_tok, self.norm_topk_prob = num_experts, num_experts_per_tok, norm_topk_prob
        self.moe_layers = moe_layers if isinstance(moe_layers, str) else list(moe_layers)
        self.moe_intermediate_size = moe_intermediate_size
        self.router_aux_loss_coef, self.router_z_loss_coef = router_aux_loss_coef, router_z_loss_coef
        self.router_l1_coef, self.router_kl_coef = router_l1_coef, router_kl_coef
        self.expert_preferences, self.modality_maps = dict(expert_preferences or {}), modality_maps
        self.lora = None if lora is None else dict(lora)
        self.expert_sources, self.trained_steps = dict(expert_sources or {}), trained_steps
        self._check(connectors or {})
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, getattr(self.text_config, name, None))
        super().__init__(**kwargs)

    def _default_towers(self) -> dict[str, str]:
        there = {name for name in TOWERS if self.tower_config(name) is not None}
        video = "video" if "video" in there else "vision"
        return {kind: name for kind, name in zip(MEDIA, ("vision", video, "audio")) if name in there}

    def tower_config(self, name: str):
        """The configuration of a tower, "vision", "video" or "audio"; None: there is none."""
        return getattr(self, f"{name}_config")

    def token_id(self, kind: str) -> int | None:
        """The placeholder of a kind of media."""
        return getattr(self, f"{kind}_token_id")

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.text_config.hidden_size

    def _check(self, connectors: dict) -> None:
        for kind, name in self.towers.items():
            if kind not in MEDIA or name not in TOWERS:
                allowed = f"{', '.join(MEDIA)}, each read by {', '.join(TOWERS)}"
                raise UserError("an unknown kind of media, or an unknown tower", got=f"{kind}: {name}", allowed=allowed)
            if self.tower_config(name) is None:
                raise UserError(f"there is no tower that reads {kind}", got=f"towers.{kind} = {name}", fix=f"set {name}_config")
        if unread := sorted(set(connectors) - set(self.towers)):
            raise UserError("a connector without a tower", got=unread[0], allowed=", ".join(self.towers) or "no tower is set")
        if unused := [n for n in TOWERS if self.tower_config(n) is not None and n not in self.towers.values()]:
            raise UserError("a tower without a connector", got=unused[0], fix=f"set towers.{MEDIA[TOWERS.index(unused[0])]}")
        for kind, settings in self.connectors.items():
            if settings.get("kind") not in _CONNECTORS:
                got = f"connectors.{kind}.kind = {settings.get('kind')}"
                raise UserError("unknown kind of connector", got=got, allowed=", ".join(_CONNECTORS))
        self._check_feature_layer()
        kinds, experts = ("text", *MEDIA), range(self.num_experts)
        if any(kind not in kinds or not set(of) <= set(experts) for kind, of in self.expert_preferences.items()):
            allowed = f"kinds of {', '.join(kinds)}, each with a list of experts of 0 to {self.num_experts - 1}"
            raise UserError("expert_preferences names what is not there", got=self.expert_preferences, allowed=allowed)

    def _check_feature_layer(self) -> None:
        """Raise UserError for a hidden layer that an encoder of images does not have."""
        for name in {tower for kind, tower in self.towers.items() if kind != "audio"}:
            tower = self.tower_config(name)
            layers = None if tower.model_type in ("imp", "videomae") else getattr(tower, "num_hidden_layers", None)
            if layers is not None and not -layers - 1 <= self.feature_layer <= layers:
                allowed = f"{-layers - 1} to {layers}, of the {layers} layers of the {name} tower; 0 is what enters them"
                raise UserError("feature_layer is no layer of a tower", got=self.feature_layer, allowed=allowed)


def _sub_config(value) -> PreTrainedConfig | None:
    if value is None or isinstance(value, PreTrainedConfig):
        return value
    fields = dict(value)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise UserError(
            "the configuration of a part names no model_type", got=sorted(fields)[:5], fix='such as "clip_vision_model"'
        )
    return AutoConfig.for_model(kind, **fields)
