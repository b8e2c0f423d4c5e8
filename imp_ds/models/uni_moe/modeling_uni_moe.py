"""Uni-MoE in the Hugging Face layout (arXiv 2405.11273, section 3): towers, connectors, and a language model with experts.

Media stand in the text as placeholders, one for each token of their connector; their features take the placeholders' places,
media of a kind in the order of the text.

Shapes: B samples, L tokens, N media of a kind, M tokens of a medium, S width of a tower, D width of the language model.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from imp_ds.errors import UserError
from imp_ds.models.initialization import initialize_module
from imp_ds.models.uni_moe.chunked_loss import TokenLoss, with_loss
from imp_ds.models.uni_moe.configuration_uni_moe import MEDIA, TOWERS, UniMoeConfig
from imp_ds.models.uni_moe.connectors import build_connector
from imp_ds.models.uni_moe.experts import TokenFacts, expert_feed_forwards, replace_feed_forwards
from imp_ds.models.uni_moe.lora import LoraLinear, LoraSettings, add_lora, changed_layers
from imp_ds.models.uni_moe.towers import INPUTS, Tower
from imp_ds.overrides import parse_record

_MEDIA_INPUTS = tuple(name for names in INPUTS.values() for name in names)


class UniMoeForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Answers texts with images, videos and audio in them.

    vision_tower, video_tower, audio_tower: `imp_ds.models.uni_moe.towers.Tower`, those that the configuration has.
    connectors: by kind of media. language_model: any causal language model of transformers.
    """

    config_class = UniMoeConfig
    base_model_prefix = "uni_moe"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_attention_backend = True
    main_input_name = "input_ids"

    def __init__(self, config: UniMoeConfig):
        super().__init__(config)
        for name in TOWERS:
            if (of_tower := config.tower_config(name)) is not None:
                setattr(self, f"{name}_tower", Tower(of_tower, config.feature_layer))
        self.connectors = nn.ModuleDict(
            {
                kind: build_connector(
                    self.tower(kind).width, config.hidden_size, config.grids.get(kind), **config.connectors[kind]
                )
                for kind in config.towers
            }
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        with_loss(self.language_model)
        self.facts: TokenFacts = replace_feed_forwards(self.language_model, config)
        if config.lora is not None:
            add_lora(self.language_model, parse_record(LoraSettings, config.lora, "the lora of config.json"), self.facts)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers has it, from safetensors alone: a pickle in the folder is never opened."""
        return super().from_pretrained(*args, **{"use_safetensors": True, **kwargs})

    def _init_weights(self, module):
        initialize_module(module, getattr(self.config.text_config, "initializer_range", 0.02))

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Experts and low-rank changes too, which the language model of transformers around them has no rule for."""
        super().initialize_weights()
        inner = [module for mixture in expert_feed_forwards(self.language_model) for module in mixture.modules()]
        inner += [layer.lora for _, layer in changed_layers(self.language_model) if isinstance(layer, LoraLinear)]
        for module in inner:
            self._init_weights(module)

    def initialize_parameters(self) -> None:
        """What the parts of transformers hold beside linear layers and embeddings: norms, classes, frequencies."""
        for part in self.parts():
            part.apply(part._init_weights)

    def parts(self) -> Iterator[PreTrainedModel]:
        """The models of transformers that it is made of, but for connectors."""
        yield self.language_model
        for name in TOWERS:
            if self.config.tower_config(name) is not None:
                yield getattr(self, f"{name}_tower").model

    def tower(self, kind: str) -> Tower:
        """The tower that reads a kind of media. Raises UserError where there is none."""
        if kind not in self.config.towers:
            raise UserError("the model reads no such media", got=kind, allowed=", ".join(self.config.towers) or "text alone")
        return getattr(self, f"{self.config.towers[kind]}_tower")

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def encode_media(self, kind: str, values: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """What the tower makes of media, [N, L, S], before the connector: what may be computed once and kept, where the tower is
        frozen. values, positions: as `imp_ds.models.uni_moe.towers.INPUTS` names them."""
        tower = self.tower(kind)
        like = next(tower.parameters())
        values = values.to(like.device, like.dtype) if values.is_floating_point() else values.to(like.device)
        return tower(kind, values, positions)

    def encode_all(self, inputs: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """`encode_media` of each kind that is there, {kind: [N, L, S]}; `inputs` by the names of `INPUTS`."""
        return {
            kind: self.encode_media(kind, inputs[values], inputs.get(positions))
            for kind, (values, positions) in INPUTS.items() if inputs.get(values) is not None
        }  # fmt: skip

    def embed(
        self, input_ids: torch.Tensor, features: dict[str, torch.Tensor], idle: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Token embeddings [B, L, D], with `features` {kind: [N, L, S]} of towers, through their connectors, in the places of the
        placeholders. idle: features that go through their connectors and change nothing. Raises UserError where the numbers of
        placeholders and features differ."""
        is_medium_BL = self._kinds(input_ids) > 0  # placeholders need no row of the table
        embeds_BLD = self.get_input_embeddings()(input_ids.masked_fill(is_medium_BL, 0))
        for kind in (kind for kind in MEDIA if kind in features or kind in (idle or {})):  # in one order on all ranks
            if kind not in features:
                embeds_BLD = embeds_BLD + 0.0 * self._connected(kind, idle[kind]).sum().to(embeds_BLD.dtype)
                continue
            states_NMD = self._connected(kind, features[kind])
            place_BL = input_ids == self.config.token_id(kind)
            if not input_ids.is_meta and (wanted := int(place_BL.sum())) != states_NMD.shape[0] * states_NMD.shape[1]:
                raise UserError(
                    f"placeholders of {kind} and features do not match", got=f"{wanted} placeholders in the ids",
                    allowed=f"{len(states_NMD)} x {states_NMD.shape[1]} features", fix="make both with the model's processor",
                )  # fmt: skip
            embeds_BLD = embeds_BLD.masked_scatter(place_BL.unsqueeze(-1), states_NMD.to(embeds_BLD.dtype))
        return embeds_BLD

    def _connected(self, kind: str, tokens: torch.Tensor) -> torch.Tensor:
        return self.connectors[kind](tokens.to(next(self.connectors[kind].parameters()).dtype))

    def hidden_states(
        self, input_ids: torch.Tensor | None, features: dict[str, torch.Tensor], attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None, idle: dict[str, torch.Tensor] | None = None,
        valid_BL: torch.Tensor | None = None, key_B: torch.Tensor | None = None, **kwargs,
    ):  # fmt: skip
        """What the layers of the language model give, before its head: the output of transformers' model, `last_hidden_state`
        [B, L, D].

        valid_BL: False at padding, which experts do not take. Where padding stands at the end no token sees it, and no
            attention_mask is needed beside.
        key_B: the samples' random keys, int64, for the dropout of LoRA; None: nothing is dropped.
        kwargs: `position_ids`, `past_key_values`, `use_cache` and others that the language model takes.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, features, idle)
        length = inputs_embeds.shape[1]
        if valid_BL is None and attention_mask is not None and attention_mask.ndim == 2:
            valid_BL = attention_mask[:, -length:].bool()
        self.facts.set(valid_BL, None if input_ids is None else self._kinds(input_ids), key_B)
        return self.get_decoder()(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def token_loss(self, states_BLD: torch.Tensor, labels_BL: torch.Tensor) -> TokenLoss:
        """The loss of supervised tokens, from what the layers give; logits of all of them never stand in memory."""
        return self.get_output_embeddings()(states_BLD, labels_BL)

    def _kinds(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which kind of media each token is: 0 text, 1 image, 2 video, 3 audio."""
        kind_BL = torch.zeros_like(input_ids)
        for number, kind in enumerate(MEDIA, start=1):
            if (token := self.config.token_id(kind)) is not None:
                kind_BL = kind_BL.masked_fill(input_ids == token, number)
        return kind_BL

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        pixel_values: torch.Tensor | None = None,
        pixel_positions: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        pixel_positions_videos: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        feature_positions: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits, [B, L, V] in float of the model, and with `labels` the mean loss over supervised tokens.

        Args:
            input_ids, attention_mask, position_ids, labels: [B, L]; labels are ids, -100 where there is no loss, not shifted.
            pixel_values ... feature_positions: media, flat over the batch, [N, ...], as `UniMoeProcessor` gives them.
            mm_encoder_outputs: what `encode_media` gave, by kind, in place of media.
            logits_to_keep: of how many last tokens logits are computed; 0: all.

        Raises UserError where placeholders and features do not match.
        """
        media = dict(zip(_MEDIA_INPUTS, (pixel_values, pixel_positions, pixel_values_videos, pixel_positions_videos,
                                         input_features, feature_positions)))  # fmt: skip
        features = self.encode_all(media) | (mm_encoder_outputs or {})
        output = self.hidden_states(
            input_ids, features, attention_mask, inputs_embeds, position_ids=position_ids, past_key_values=past_key_values,
            use_cache=use_cache, **kwargs,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(output.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=output.past_key_values, hidden_states=output.hidden_states,
            attentions=output.attentions,
        )  # fmt: skip

    # generation: media are encoded once, before the first step

    def generate(self, inputs: torch.Tensor | None = None, **kwargs):
        """As transformers has it: greedy, sampling or beam search, with a cache of keys and values. Media as in `forward`."""
        features = self.encode_all(kwargs) | (kwargs.pop("mm_encoder_outputs", None) or {})
        kwargs = {name: value for name, value in kwargs.items() if name not in _MEDIA_INPUTS}
        placeholders = [token for kind in MEDIA if (token := self.config.token_id(kind)) is not None]
        placeholders = [token for token in placeholders if token < self.config.text_config.vocab_size]
        if placeholders:  # no answer has media in it
            kwargs.setdefault("suppress_tokens", placeholders)
        return super().generate(inputs, mm_encoder_outputs=features, **kwargs)

    def _supports_mm_encoder_outputs(self) -> bool:
        return False  # ours are what towers give, and `generate` has computed them already

    def prepare_inputs_for_generation(self, input_ids, *args, mm_encoder_outputs=None, is_first_iteration=False, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, *args, is_first_iteration=is_first_iteration, **kwargs)
        # without a cache each step reads all of the sequence, and media with it
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs["mm_encoder_outputs"] = mm_encoder_outputs
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """A sample's media go with each of its beams: of two samples the first's media twice, then the second's."""
        features = kwargs.pop("mm_encoder_outputs", None) or {}
        if expand_size > 1:
            features = {kind: self._repeated(input_ids, kind, tokens, expand_size) for kind, tokens in features.items()}
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs | {"mm_encoder_outputs": features}

    def _repeated(self, input_ids: torch.Tensor, kind: str, tokens: torch.Tensor, times: int) -> torch.Tensor:
        placeholders = (input_ids == self.config.token_id(kind)).sum(1)
        media_of_each = (placeholders * len(tokens) // placeholders.sum().clamp(min=1)).tolist()
        return torch.cat([of_sample.repeat(times, *[1] * (tokens.ndim - 1)) for of_sample in tokens.split(media_of_each)])
