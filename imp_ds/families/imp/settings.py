"""The settings of IMP's encoder in a recipe, and the ImpConfig that they make with the run's tasks."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from imp_ds.modalities.modality import get_modality, standard_modalities
from imp_ds.modalities.sides import JOINED
from imp_ds.modalities.text.masking import mask_id
from imp_ds.modalities.text.tokens import end_id
from imp_ds.modalities.views import model_options
from imp_ds.model_settings import FamilySettings
from imp_ds.models.imp.configuration_imp import MOST_LAYERS, ImpConfig
from imp_ds.moe.routers.registry import ROUTERS
from imp_ds.objectives.registry import task_entry
from imp_ds.records import OpenRecord
from imp_ds.registry import MODALITIES
from imp_ds.tasks import Task

Size = Literal["tiny", "S", "B", "M", "L"]


class ModelSettings(FamilySettings, OpenRecord):
    """The encoder: a published size, and whatever differs from it. A field left at None keeps the size's or ImpConfig's value."""

    family: Literal["imp"] = Field("imp", description="which kind of model this is")
    size: Size = Field("B", description="published size whose widths and layers are taken")
    hidden_size: int | None = Field(None, ge=1, description="width of the encoder")
    intermediate_size: int | None = Field(None, ge=1, description="width of the feed-forward")
    num_hidden_layers: int | None = Field(None, ge=1, le=MOST_LAYERS, description="layers of the encoder")
    num_attention_heads: int | None = Field(None, ge=1, description="attention heads; they divide the width")
    qk_norm: bool | None = Field(None, description="normalise queries and keys")
    hidden_dropout: float | None = Field(None, ge=0, lt=1, description="dropout in the encoder")
    layer_norm_eps: float | None = Field(None, gt=0, description="added to the variance in the encoder's norms")
    hidden_act: Literal["gelu_pytorch_tanh", "gelu", "silu"] | None = Field(
        None, description="activation of the dense feed-forwards"
    )
    block_biases: bool | None = Field(
        None, description="biases of the blocks: of their norms, and of what attention and feed-forward add"
    )
    text_length: int | None = Field(
        None, ge=1, description="tokens that the texts of training are padded to; None: the longest text view of the tasks"
    )
    common_dim: int | None = Field(None, ge=1, description="width of the space in which modalities are compared")
    num_experts: int | None = Field(None, ge=0, description="experts of each MoE layer; 0 is a dense encoder")
    moe_layers: str | list[int] | None = Field(
        None, description='"all", "first:N", "last:N", "every:N", "four" (every fourth) or a list of indices from 0'
    )
    gate: Literal["token", "context", "modality", "task", "attribute"] | None = Field(
        None, description="what the choice of experts hangs on"
    )
    conditional_linears: list[Literal["qkv", "out", "up", "down"]] | None = Field(
        None, description="linear layers that have experts; None: the whole feed-forward; up and down of a constant gate"
    )
    share_decisions: bool | None = Field(None, description="out goes by the choice of qkv, down by that of up")
    gate_tasks: list[str] | None = Field(None, description="tasks that a task gate knows, in order; None: those of the run")
    router: Annotated[str, AfterValidator(ROUTERS.known)] | None = Field(
        None, description=f"how experts are chosen: {', '.join(ROUTERS.homes)}, or what an imported module registers"
    )
    router_options: dict[str, Any] | None = Field(None, description="of the router's own options those that have no field here")
    experts_per_token: int | None = Field(None, ge=1, description="choices of a token, where tokens choose")
    drop_tokens: bool | None = Field(None, description="where tokens choose: whether an expert keeps at most its capacity")
    expert_intermediate_size: int | None = Field(None, ge=1, description="feed-forward width of one expert")
    expert_activation: Literal["gelu", "geglu", "silu"] | None = Field(None, description="activation inside an expert")
    capacity_factor: float | None = Field(None, gt=0, description="room of the experts; where they choose, experts of a token")
    group_tokens: int | None = Field(None, ge=1, description="tokens of a routing group at most")
    group_examples: int | None = Field(None, ge=1, description="examples of a routing group at most; None: no limit")
    router_z_loss: float | None = Field(None, ge=0, description="coefficient of the loss on large router logits")
    router_balance: float | None = Field(None, ge=0, description="where tokens choose: coefficient of the load-balancing loss")
    router_noise: float | None = Field(None, ge=0, description="noise on the router's logits, in units of 1 / num_experts")
    prompt_length: int | None = Field(None, ge=0, description="deep prompts of each layer; 0: none")
    candidate_prompts: Literal["shared", "separate"] | None = Field(
        None, description="separate: candidates have prompts of their own"
    )
    merged_conditions: list[str] | None = Field(None, description="of a merged model: the conditions that it has copies for")

    @classmethod
    def more_fields(cls):
        """Options of each modality."""
        return model_options()

    def to_config(self, vocab_size: int, tasks: list[Task], tokenizer=None) -> ImpConfig:
        """The ImpConfig of these settings, with the objectives of `tasks`.

        tokenizer: the run's, from which likelihood objectives have the tokens of their candidates; without it a model can be
        built and measured, but these objectives not computed. Raises UserError when the settings contradict each other.
        """
        changes = {name: value for name, value in self.model_dump(exclude={"family", "size"}).items() if value is not None}
        objectives = {task.name: task_entry(task.objectives, task.reduction, tokenizer, task.name) for task in tasks}
        if tokenizer is not None and any(objective.scale_family for task in tasks for objective in task.objectives):
            changes |= {"mask_token_id": mask_id(tokenizer), "end_token_id": end_id(tokenizer)}
        changes |= _class_names(tasks)
        changes |= self._modalities(tasks)
        lengths = [view.text.length for task in tasks for view in task.all_views if view.text is not None]
        if self.text_length is None and lengths:
            changes["text_length"] = max(lengths)
        config = ImpConfig.from_size(self.size, vocab_size=vocab_size, objectives=objectives, **changes)
        for task in tasks:
            for objective in task.objectives:
                objective.check_model(config, task.name)
        return config

    def _modalities(self, tasks: list[Task]) -> dict:
        """What a model must have for the tasks beyond the standard: modalities, options that follow from the views, and common
        spaces of pairs. Empty where it is the standard."""
        every = [view for task in tasks for view in task.all_views]
        views = {name: [found for view in every if (found := getattr(view, name)) is not None] for name in MODALITIES}
        needed = [name for name in MODALITIES if views[name] and name not in standard_modalities()]
        pairs = [list(pair) for task in tasks for objective in task.objectives for pair in objective.common_spaces()]
        more = [pair for pair in pairs if any(JOINED in side or side in needed for side in pair)]
        if not needed and not more:
            return {}
        found = {"modalities": [*standard_modalities(), *needed]} if needed else {}
        for name in needed:
            derived = get_modality(name).derive_options(views[name])
            found |= {f"{name}_{option}": value for option, value in derived.items() if getattr(self, f"{name}_{option}") is None}
        return found | {"pairs": [*ImpConfig().pairs, *(pair for place, pair in enumerate(more) if pair not in more[:place])]}


def _class_names(tasks: list[Task]) -> dict:
    """id2label and label2id, as transformers has them, of the first task whose labels are classes with names; nothing where none
    has."""
    labelled = (o for task in tasks for o in task.objectives if o.answers() is not None and o.answers().field == "names")
    names = next((o.names for o in labelled), None)
    if names is None:
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: position for position, name in enumerate(names)}}
