"""The settings of Uni-MoE in a recipe: which parts it is put together from, and where experts stand."""

from typing import Literal

from pydantic import Field
from transformers import PreTrainedConfig

from imp_ds.errors import UserError
from imp_ds.families.uni_moe.adapters.files import Adapter
from imp_ds.families.uni_moe.media import MediaParts, media_parts
from imp_ds.families.uni_moe.parts import Part, language_config, part_config
from imp_ds.model_settings import FamilySettings
from imp_ds.models.uni_moe.configuration_uni_moe import MEDIA, UniMoeConfig
from imp_ds.models.uni_moe.lora import LoraSettings
from imp_ds.models.uni_moe.upcycling import slices_of
from imp_ds.records import Record
from imp_ds.tasks import Task


class ConnectorSettings(Record):
    """From the tokens of a tower to those of the language model."""

    kind: Literal["linear", "mlp2x_gelu", "qformer", "decoder"] = Field("mlp2x_gelu", description="which kind of connector")
    pool: int | list[int] = Field(1, description="linear, mlp2x_gelu: tokens that become one, on each axis of the tower's grid")
    queries: int = Field(32, ge=1, description="qformer, decoder: tokens that a medium becomes")
    depth: int = Field(2, ge=1, description="qformer, decoder: layers")
    heads: int | None = Field(None, ge=1, description="qformer, decoder: attention heads; None: of width 64")
    start_from: str | None = Field(None, description="folder of an exported model whose connector it starts as; None: fresh")

    def arguments(self) -> dict:
        """What `build_connector` takes."""
        own = ("kind", "pool") if self.kind in ("linear", "mlp2x_gelu") else ("kind", "queries", "depth", "heads")
        return self.model_dump(include=set(own))


class UniMoeSettings(FamilySettings):
    """Towers, connectors and a language model. A part is the folder of a model of transformers, or of an exported one of ours,
    whose weights the run starts from; or its configuration with "model_type", of which it starts with fresh weights."""

    family: Literal["uni_moe"] = Field("uni_moe", description="which kind of model this is")
    language_model: Part = Field(description="a causal language model: a folder, or its configuration with model_type")
    image_tower: Part | None = Field(None, description="what reads images; None: no images are read")
    video_tower: Part | None = Field(None, description="what reads videos; the same as image_tower: by frames, averaged")
    audio_tower: Part | None = Field(None, description="what reads audio; None: no audio is read")
    image_connector: ConnectorSettings = Field(ConnectorSettings(), description="of images")
    video_connector: ConnectorSettings = Field(ConnectorSettings(), description="of videos")
    audio_connector: ConnectorSettings = Field(ConnectorSettings(), description="of each chunk of audio")
    audio_overlap: float = Field(0.0, ge=0, lt=1, description="share of a chunk of long audio that the next one repeats")
    feature_layer: int = Field(-1, description="layer of vision towers that is read; published: -2")
    frames: int = Field(8, ge=1, description="frames of a video, where its tower does not set them")
    chat_template: str | None = Field(None, description="Jinja file of the chat template; None: that of the tokenizer, or ours")
    num_experts: int = Field(0, ge=0, description="experts of each MoE layer; 0: the language model's own feed-forwards")
    experts: dict[str, str] = Field(
        {}, description="slot -> folder of a dense model, whose feed-forwards its expert starts as; {}: the language model's"
    )
    experts_per_token: int = Field(2, ge=1, description="experts that a token takes")
    moe_layers: str | list[int] = Field("all", description='"all", "every:N", "first:N", "last:N" or a list of layers from 0')
    expert_intermediate_size: int | None = Field(None, ge=1, description="width of an expert; None: of the language model's")
    expert_noise: float = Field(0.0, ge=0, description="noise on experts that are copies or slices, in units of their deviation")
    router_balance: float = Field(0.0, ge=0, description="coefficient of the load-balancing loss")
    router_z_loss: float = Field(0.0, ge=0, description="coefficient of the loss on large router logits")
    router_l1: float = Field(0.0, ge=0, description="coefficient of the L1 loss between gates and expert_preferences")
    router_kl: float = Field(0.0, ge=0, description="coefficient of the loss that keeps the gates of modalities apart")
    expert_preferences: dict[str, list[int]] = Field({}, description="experts that a kind of media prefers")
    modality_maps: bool = Field(False, description="a linear map for each modality before the gate")
    lora: LoraSettings | None = Field(None, description="low-rank changes of the language model's layers; None: there are none")
    adapter: str | None = Field(None, description="folder of a PEFT adapter that LoRA is, and starts from, in the place of lora")

    @property
    def towers(self) -> dict[str, Part]:
        """Kind of media -> its tower."""
        found = {kind: getattr(self, f"{kind}_tower") for kind in MEDIA}
        return {kind: part for kind, part in found.items() if part is not None}

    def tower_names(self) -> dict[str, str]:
        """Kind of media -> the name of its tower in UniMoeConfig; kinds of one tower share it."""
        names: dict[str, str] = {}
        for kind, part in self.towers.items():
            same = next((other for other in names if self.towers[other] == part), None)
            names[kind] = names[same] if same else ("vision" if kind == "image" else kind)
        return names

    def connector_starts(self) -> dict[str, tuple[str, str]]:
        """Of the connectors that start from a model: the field that says so -> (kind of media, folder)."""
        starts = {kind: getattr(self, f"{kind}_connector").start_from for kind in self.towers}
        return {f"model.{kind}_connector.start_from": (kind, folder) for kind, folder in starts.items() if folder is not None}

    def media(self) -> MediaParts:
        """What preprocesses each kind of media, made from the towers. Raises UserError for a folder that cannot be read."""
        return media_parts(self.towers, self.frames)

    def to_config(self, vocab_size: int, tasks: list[Task], tokenizer=None) -> UniMoeConfig:
        """The UniMoeConfig of these settings. Raises UserError for a part that cannot be read, and for settings that contradict
        each other."""
        text = language_config(self.language_model)
        if isinstance(self.language_model, dict) and "vocab_size" not in self.language_model:
            text.vocab_size = vocab_size
        elif tokenizer is not None and text.vocab_size < len(tokenizer) - len(MEDIA):  # placeholders need no row
            got = f"{len(tokenizer) - len(MEDIA)} tokens, {text.vocab_size} rows of the language model"
            raise UserError("the tokenizer has tokens that the language model does not know", got=got, fix="take its tokenizer")
        if tokenizer is not None:
            text.eos_token_id, text.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
            text.bos_token_id = tokenizer.bos_token_id
        experts = getattr(text, "num_local_experts", getattr(text, "num_experts", 0))  # of a base that has some of its own
        self._check_experts(text, experts)
        names = self.tower_names()
        configs = {
            f"{name}_config": part_config(self.towers[kind], f"model.{kind}_tower") for kind, name in reversed(names.items())
        }
        media = self.media()
        config = UniMoeConfig(
            text, towers=names, grids=media.grids, feature_layer=self.feature_layer, media_shapes=media.shapes,
            connectors={kind: getattr(self, f"{kind}_connector").arguments() for kind in names},
            **_placeholders(text.vocab_size, tokenizer),
            num_experts=experts or len(self.experts) or self.num_experts,
            num_experts_per_tok=text.num_experts_per_tok if experts else self.experts_per_token,
            norm_topk_prob=not experts or getattr(text, "norm_topk_prob", True), moe_layers=self.moe_layers,
            moe_intermediate_size=self.expert_intermediate_size, router_aux_loss_coef=self.router_balance,
            router_z_loss_coef=self.router_z_loss, router_l1_coef=self.router_l1, router_kl_coef=self.router_kl,
            expert_preferences=self.expert_preferences, modality_maps=self.modality_maps,
            lora=None if self.lora is None else self.lora.model_dump(), **configs,
        )  # fmt: skip
        if self.adapter is not None:
            if self.lora is not None:
                got, fix = f"model.adapter = {self.adapter}, and model.lora", "leave one of them out"
                raise UserError("LoRA is set twice: an adapter brings its own settings", got=got, fix=fix)
            config.lora = Adapter(self.adapter, config.num_experts).settings().model_dump()
        for task in tasks:
            _check_length(text, task)
            for objective in task.objectives:
                objective.check_model(config, task.name)
        return config


    def _check_experts(self, text: PreTrainedConfig, own: int) -> None:
        """Raise UserError for slots of a language model with experts of its `own`, settings that contradict the slots, and
        experts that a trained language model cannot be cut into."""
        width = getattr(text, "intermediate_size", None)
        if not self.experts:
            if self.num_experts and self.expert_intermediate_size and width and not own and isinstance(self.language_model, str):
                slices_of(width, self.expert_intermediate_size, self.num_experts)
            return
        slots = ", ".join(self.experts)
        if own:
            got = f"{own} experts of its own, and the slots {slots}"
            raise UserError("model.experts beside a language model that has experts", got=got, allowed="a dense language model")
        if self.num_experts not in (0, len(self.experts)):
            raise UserError(
                "model.num_experts is not the number of slots in model.experts", got=f"{self.num_experts}, and {slots}",
                allowed=f"{len(self.experts)}, or 0: as many as there are slots",
            )  # fmt: skip
        if self.expert_intermediate_size not in (None, width):
            got = f"model.expert_intermediate_size = {self.expert_intermediate_size}"
            raise UserError("experts of model.experts are whole feed-forwards", got=got, allowed=f"{width}, or null")


def _check_length(text: PreTrainedConfig, task: Task) -> None:
    """Raise UserError for a task with conversations that are longer than the language model's positions."""
    most = getattr(text, "max_position_embeddings", None)
    for view in (views.messages for views in task.all_views):
        if view is not None and most is not None and view.length > most:
            raise UserError(
                f"task {task.name}: conversations may be longer than the language model reads",
                got=f"views.messages.length = {view.length}", allowed=f"at most {most}, its max_position_embeddings",
                fix=f"--set tasks.{task.name}.views.messages.length={most}",
            )  # fmt: skip


def _placeholders(vocab_size: int, tokenizer) -> dict[str, int]:
    """The ids of placeholders; without a tokenizer some that no text has: they need no row of the embedding."""
    if tokenizer is None:
        return {f"{kind}_token_id": vocab_size + place for place, kind in enumerate(MEDIA)}
    return {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in MEDIA}
