"""ImpModel: one encoder for image, video, audio and text (Akbari et al., 2023, arXiv 2305.06324).

Shapes: B batch, L tokens of an example, D width, C width of a common space, S random sites of a block, N tokens of any examples,
V words of the vocabulary.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from imp_ds.errors import UserError
from imp_ds.modalities.modality import get_modality
from imp_ds.modalities.text.tokens import TokenTable
from imp_ds.models.imp.conditions import build_condition, condition_name, is_target
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.encoder.layers import RANDOM_SITES, ImpBlock
from imp_ds.models.imp.encoder.prompts import SEPARATE
from imp_ds.models.imp.features import FeatureMethods, first_values
from imp_ds.models.imp.inputs import by_modality, modality_of
from imp_ds.models.imp.likelihood import LikelihoodHead
from imp_ds.models.imp.sequences import count_tokens, join_segments, join_tokens, masked_mean
from imp_ds.models.initialization import initialize_module
from imp_ds.moe.conditional import join
from imp_ds.moe.routing import Condition, RouterReport, Segment
from imp_ds.randomness import derive, step_key


@dataclass
class Encoding:
    """One modality's path through the encoder.

    tokens_BLD: the tokens after the last norm and the modality's own projection; valid_BL: False at padding, or None;
    pooled_BD: their mean over valid tokens; reports: one RouterReport for each MoE layer, in order; lengths: tokens of each
    segment, in order, which sum to L; hidden_states: the input of the first block and the output of each, [B, L, D];
    attentions: the attention weights of each block, [B, H, L, deep prompts and L]. Both None unless asked for.
    """

    tokens_BLD: torch.Tensor
    valid_BL: torch.Tensor | None
    pooled_BD: torch.Tensor
    reports: list[RouterReport]
    lengths: tuple[int, ...] = ()
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ImpOutput(ModelOutput):
    """What `ImpModel.forward` returns; a field is None when its modality was not given.

    vision_pooled, audio_pooled, text_pooled: [B, D]; videos_pooled: of videos given together with images; more_pooled: of further
        modalities by their names.
    embeddings: "source_to_target" -> unit vectors [B, C]; compare "vision_to_text" with "text_to_vision" by dot product;
        "videos_to_text" too, and "vision+audio_to_text" in a model that compares both together, where both are given.
    router_z_loss: the z-losses of all MoE layers and modalities, weighted by config.router_z_loss and summed.
    hidden_states, attentions: where asked for, of the one modality that was given, as `Encoding` has them; where several were
        given, these tuples by modality.
    last_hidden_state, pooler_output: of the one modality that was given, as `get_features` has them; None where several were, and
        no pooler_output of a model that compares by its likelihood head alone.
    logits_per_image, logits_per_video, logits_per_audio: of each with each text that was given, [B, texts]: cosines divided by
        the temperature that config.temperatures has of the modality. Videos beside images have theirs, alone they are images.
        logits_per_text: of the first of these, transposed.
    """

    vision_pooled: torch.Tensor | None = None
    audio_pooled: torch.Tensor | None = None
    text_pooled: torch.Tensor | None = None
    videos_pooled: torch.Tensor | None = None
    embeddings: dict[str, torch.Tensor] | None = None
    router_z_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | dict[str, tuple[torch.Tensor, ...]] | None = None
    attentions: tuple[torch.Tensor, ...] | dict[str, tuple[torch.Tensor, ...]] | None = None
    more_pooled: dict[str, torch.Tensor] | None = None
    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_video: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None


class Projection(nn.Module):
    """From the encoder into the common space of one ordered pair: two layers and a norm (release, `modeling/heads.py`)."""

    def __init__(self, config: ImpConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.common_dim)
        self.down = nn.Linear(config.common_dim, config.common_dim)
        self.norm = nn.LayerNorm(config.common_dim, eps=config.layer_norm_eps)

    def forward(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        hidden_BC = F.gelu(self.up(pooled_BD), approximate="tanh")
        return F.normalize(self.norm(self.down(hidden_BC)).float(), dim=-1, eps=1e-6)


class ImpPreTrainedModel(PreTrainedModel):
    """What all IMP models share with the Hugging Face classes."""

    config_class = ImpConfig
    base_model_prefix = "imp"
    main_input_name = "pixel_values"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ImpBlock"]

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers has it, from safetensors alone: a pickle in the folder is never opened."""
        return super().from_pretrained(*args, **{"use_safetensors": True, **kwargs})

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None, **kwargs):
        """Recompute activations in the backward. The reentrant kind loses the gradient of the router's z-loss, which a block
        returns inside its report, so UserError refuses it for an encoder with experts."""
        chosen = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if chosen["use_reentrant"] and self.config.num_experts:
            raise UserError(
                "the z-loss of the routers would get no gradient", got="gradient checkpointing with use_reentrant=True",
                allowed="use_reentrant=False",
            )  # fmt: skip
        with warnings.catch_warnings():
            # transformers 5.2x renames it; 5.17 knows this name alone, and whoever calls it here can mend nothing
            warnings.simplefilter("ignore", FutureWarning)
            super().gradient_checkpointing_enable(chosen, **kwargs)

    def _init_weights(self, module):
        initialize_module(module, self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """The table of the words' vectors."""
        return self.base_model.embeddings["text"].words

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another table in its place. A plain nn.Embedding becomes a TokenTable, which scores tokens too: itself, not a copy,
        since others may hold it."""
        if type(value) is nn.Embedding:
            value.__class__ = TokenTable
        self.base_model.embeddings["text"].words = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """As transformers has it; what scores all words of the vocabulary (`resize_tokens`) follows. UserError for fewer words
        than the numbers of the padding, mask and end tokens ask for."""
        special = [getattr(self.config, f"{name}_token_id") for name in ("pad", "mask", "end")]
        least = 1 + max((number for number in special if number is not None), default=0)
        if new_num_tokens is not None and new_num_tokens < least:
            raise UserError(
                "the vocabulary would lose a token that the model needs", got=f"{new_num_tokens} tokens",
                allowed=f"{least} at least: padding, mask and end are {special}",
            )  # fmt: skip
        found = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        for module in self.modules():
            if hasattr(module, "resize_tokens"):
                module.resize_tokens(found.num_embeddings)
        return found


class ImpModel(FeatureMethods, ImpPreTrainedModel):
    """The encoder with its modality embeddings and the projections into the common spaces."""

    # the heads and temperatures of pre-training stand beside the encoder in an exported folder
    _keys_to_ignore_on_load_unexpected = [r"^objectives\."]

    def __init__(self, config: ImpConfig):
        super().__init__(config)
        width = config.hidden_size
        self.embeddings = nn.ModuleDict({name: get_modality(name).embedding(config) for name in config.modalities})
        self.pre_encoder = nn.ModuleDict({name: nn.Linear(width, width) for name in config.modalities})
        self.blocks = nn.ModuleList(ImpBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_encoder = nn.ModuleDict({name: nn.Linear(width, width) for name in config.modalities})
        ordered = [order for a, b in config.pairs for order in ((a, b), (b, a))]
        self.projections = nn.ModuleDict({f"{a}_to_{b}": Projection(config) for a, b in ordered})
        families = config.likelihood_families
        self.likelihood = LikelihoodHead(config, families) if families else None
        self.post_init()

    def condition(
        self, modality: str, task: str | None = None, *, target: bool | None = None, attributes: tuple[str, ...] | None = None
    ) -> Condition:
        """The condition of a segment of `modality`, for gates that ask for it, and for prompts of queries or of candidates.

        Args:
            task: one of config.objectives; gates that ask for modalities alone, or for nothing, do without.
            target: whether the segment is of the task's candidates; None: it is when the task has candidates of
                the modality and no queries of it.
            attributes: names of `attribute_names(config.modalities)`, instead of those of the task: for a task that the
                model has not been trained on.

        Raises UserError for a task or an attribute that the model does not know, naming the task.
        """
        found = Condition()
        if self.config.num_experts or self.config.merged_conditions:
            name = condition_name(self.config, modality, task, target, attributes)
            found = build_condition(self.config, name, self.device)
        if self.config.prompt_length and self.config.candidate_prompts == SEPARATE:
            found = found._replace(target=is_target(self.config, modality, task, target))
        return found

    def encode(
        self,
        modality: str,
        inputs: dict[str, torch.Tensor],
        key_B: torch.Tensor | None = None,
        condition: Condition | None = None,
        *,
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> Encoding:
        """One modality through the shared encoder. `inputs` holds the modality's arrays by the names of its embedding.

        key_B: the samples' random keys (`imp_ds.randomness`), int64, from which dropout and the routers' noise are drawn;
        nothing is random without them, nor outside of training. condition: as `condition` gives it; None: of the modality alone.
        hidden_states, attentions: whether the Encoding shall have them.

        In training examples compete for experts in groups; outside of it each routes alone, whatever is beside it in the batch
        and however it is padded.

        Raises UserError when there is no condition and the gates ask for the task.
        """
        part = (modality, inputs, condition)
        return self.encode_segments([part], key_B, hidden_states=hidden_states, attentions=attentions)

    def encode_segments(
        self,
        parts: list[tuple[str, dict[str, torch.Tensor], Condition | None]],
        key_B: torch.Tensor | None = None,
        mask_LL: torch.Tensor | None = None,
        *,
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> Encoding:
        """Several segments, each (modality, inputs, condition) as `encode` takes them, through the encoder as one sequence.

        mask_LL: bool, True where the token of the row may see that of the column, L being all segments' tokens in their
        order; None: everyone sees everyone. Padding is seen by nobody, whatever the mask says.

        Each segment has its own positions, from 0, and its modality's own linear layers before and after the blocks. Neighbours
        that are given the very same condition, not an equal one, cost a constant gate one decision. The encoding is of the whole
        sequence; its `lengths` say where the segments end.

        Raises UserError for a mask when experts would let a token depend on those that it hides.
        """
        if mask_LL is not None and self.config.tokens_compete:
            raise UserError(
                "experts that choose among tokens, or drop some, let each token depend on those that its mask hides",
                got=f"a mask with {self.config.planned_router.describe()}",
                allowed="router = top_k with drop_tokens = false, or a constant gate",
            )  # fmt: skip
        embedded = [self._embed(modality, inputs) for modality, inputs, _ in parts]
        modalities, lengths = [modality for modality, _, _ in parts], [tokens.shape[1] for tokens, _ in embedded]
        segments = join_segments(
            (length, self.condition(modality) if condition is None else condition)
            for (modality, _, condition), length in zip(parts, lengths)
        )
        x_BLD, valid_BL = join_tokens(embedded)
        alone = not self.training and self.config.routes_tokens
        counted = count_tokens(modalities, embedded, self.config.text_length) if alone else None
        reports, seen, weights = [], [x_BLD], [] if attentions else None
        for block, (key_BS, keyed) in zip(self.blocks, self._keyed(modalities, key_B, segments), strict=True):
            x_BLD, report = block(x_BLD, valid_BL, key_BS, keyed, mask_LL, counted, weights)
            if report is not None:
                reports.append(report)
            if hidden_states:
                seen.append(x_BLD)
        states = self.norm(x_BLD).split(lengths, dim=1)
        tokens_BLD = join([self.post_encoder[modality](states_BLD) for modality, states_BLD in zip(modalities, states)])
        return Encoding(
            tokens_BLD, valid_BL, masked_mean(tokens_BLD, valid_BL), reports, tuple(lengths),
            tuple(seen) if hidden_states else None, tuple(weights) if attentions else None,
        )  # fmt: skip

    def _embed(self, modality: str, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens_BLD, valid_BL = self.embeddings[modality](**inputs)
        return self.pre_encoder[modality](tokens_BLD), valid_BL

    def _keyed(self, modalities: list[str], key_B: torch.Tensor | None, segments: tuple[Segment, ...]) -> Iterator[tuple]:
        """For each block the keys of its random sites, [B, S], and the segments, whose keys are the step's, [1, S]; None where
        nothing is random."""
        random = self.training and (self.config.hidden_dropout or self.config.router_noise)
        if key_B is None or not random:
            yield from [(None, segments)] * len(self.blocks)
            return
        of_samples, of_step = self._block_keys(modalities, key_B), self._block_keys(modalities, step_key(key_B))
        for key_BS, key_1S in zip(of_samples, of_step):
            yield key_BS, tuple(Segment(length, condition._replace(key_1S=key_1S)) for length, condition in segments)

    def _block_keys(self, modalities: list[str], key_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The keys of the random sites of each block, [B, S]. Each sequence of modalities has its own."""
        for modality in modalities:
            key_B = derive(key_B, self.config.modalities.index(modality))
        sites = torch.arange(len(self.blocks) * RANDOM_SITES, device=key_B.device)
        return derive(key_B[:, None], sites).split(RANDOM_SITES, dim=1)

    def project(self, pooled_BD: torch.Tensor, source: str, target: str, truncate_dim: int | None = None) -> torch.Tensor:
        """Pooled `source` into the space where it meets `target`: float32 unit vectors [B, C], or of `truncate_dim` values.

        Raises UserError when the model was built without that pair.
        """
        name = f"{source}_to_{target}"
        if name not in self.projections:
            raise UserError("the model has no projection for this pair", got=name, allowed=", ".join(self.projections))
        return first_values(self.projections[name](pooled_BD), truncate_dim)

    def score_tokens(self, states_ND: torch.Tensor) -> torch.Tensor:
        """The product of each state with the vector of every token of the vocabulary, [N, V].

        Divided by sqrt(D): the words' elements have unit variance, and so have then the scores of normed states (as in T5's
        release, arXiv 1910.10683, whose words are drawn and shared alike).
        """
        return self.embeddings["text"].words(states_ND * self.config.hidden_size**-0.5)

    def router_loss(self, *encodings: Encoding) -> torch.Tensor:
        """The weighted losses of all routers over all encodings: the one place where they are summed."""
        total = encodings[0].pooled_BD.new_zeros((), dtype=torch.float32)
        for report in (report for encoding in encodings for report in encoding.reports):
            loss = self.config.router_z_loss * report.z_loss + self.config.router_balance * report.balance_loss
            total = total + loss.to(total.device)
        return total

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_positions: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        feature_positions: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        task: str | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        pixel_positions_videos: torch.Tensor | None = None,
        truncate_dim: int | None = None,
        **more_inputs: torch.Tensor | None,
    ) -> ImpOutput | tuple:
        """Encode whatever is given, as `ImpProcessor` returns it, and project it towards every modality it is paired with.

        Args:
            pixel_values_videos: videos beside the images of pixel_values, encoded alike; videos alone may be either.
            pixel_positions, feature_positions: None: those of a whole grid, where the number of patches gives it.
            truncate_dim: the first so many values of each embedding, as unit vectors (config.matryoshka has those of training).
            more_inputs: of the model's further modalities, by the names of their `Modality.inputs`.
            task: one of config.objectives, whose condition all of it has; task and attribute gates need it.
            output_hidden_states, output_attentions, return_dict: as in transformers; None: as the configuration says. Without
                `return_dict` the answer is a tuple of what ImpOutput holds, in its order.

        Raises UserError when nothing is given, and for positions that cannot be derived.
        """
        inputs = dict(
            pixel_values=pixel_values, pixel_positions=pixel_positions, input_features=input_features,
            feature_positions=feature_positions, input_ids=input_ids, attention_mask=attention_mask,
            pixel_values_videos=pixel_values_videos, pixel_positions_videos=pixel_positions_videos, **more_inputs,
        )  # fmt: skip
        hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        encodings = {}
        for source, named in (given := by_modality(self.config, inputs)).items():
            modality = modality_of(source)
            condition = self.condition(modality, task)
            encodings[source] = self.encode(
                modality, named, condition=condition, hidden_states=hidden_states, attentions=attentions
            )
        embeddings = {
            f"{source}_to_{target}": self.project(encoding.pooled_BD, modality, target, truncate_dim)
            for modality, target in (name.split("_to_") for name in self.projections)
            for source, encoding in encodings.items()
            if modality_of(source) == modality
        } | self._joint_embeddings(given, task, truncate_dim)
        output = ImpOutput(
            **{f"{source}_pooled": encoding.pooled_BD for source, encoding in encodings.items() if _has_field(source)},
            more_pooled={source: encoding.pooled_BD for source, encoding in encodings.items() if not _has_field(source)} or None,
            embeddings=embeddings,
            router_z_loss=self.router_loss(*encodings.values()),
            hidden_states=_of_layers(encodings, "hidden_states"),
            attentions=_of_layers(encodings, "attentions"),
            **self._by_common_names(encodings, embeddings),
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _has_field(source: str) -> bool:
    """Whether ImpOutput has a field for the pooled vectors of a source."""
    return f"{source}_pooled" in ImpOutput.__dataclass_fields__


def _of_layers(encodings: dict[str, Encoding], name: str):
    """That field of the only encoding, or of each by modality; None where nobody asked for it."""
    found = {modality: getattr(encoding, name) for modality, encoding in encodings.items()}
    if None in found.values():
        return None
    return found if len(found) > 1 else next(iter(found.values()))
