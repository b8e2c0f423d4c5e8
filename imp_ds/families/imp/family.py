"""IMP as a family of models (`imp_ds.families.family.ModelFamily`)."""

from pathlib import Path

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families import register_family
from imp_ds.families.family import ModelFamily
from imp_ds.families.groups import check_groups
from imp_ds.families.imp import model_card
from imp_ds.families.imp.costs.cost import ImpCost
from imp_ds.families.imp.costs.tokens import task_sequences
from imp_ds.families.imp.initial_weights import load_initial, sources_of
from imp_ds.families.imp.merging import merge
from imp_ds.families.imp.model_folder import load_processor, load_weights, trained_temperatures
from imp_ds.families.imp.pretrained.loading import load_tower
from imp_ds.families.imp.pretrained.tower import is_tower
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.processor import build_processor
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.families.initial import InitialWeights
from imp_ds.modalities.modality import get_modality
from imp_ds.models.imp.conditions import task_conditions
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.features import first_task
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.modeling_imp import ImpModel
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor
from imp_ds.registry import MODALITIES


@register_family
class ImpFamily(ModelFamily):
    kind = "imp"
    commands = ("eval", "predict")
    Settings = ModelSettings
    Model = ImpForPreTraining
    Processor = ImpProcessor

    def auto_classes(self):
        models = ("AutoModel", "AutoModelForZeroShotImageClassification")
        parts = {"AutoImageProcessor": ImpImageProcessor, "AutoVideoProcessor": ImpVideoProcessor}
        parts |= {"AutoFeatureExtractor": ImpFeatureExtractor, "AutoProcessor": ImpProcessor}
        return {"AutoConfig": ImpConfig, **dict.fromkeys(models, ImpModel), **parts}

    def sentence_methods(self, config):
        compared = [modality for modality in MODALITIES if first_task(config, modality) is not None]
        return {kind: f"get_{kind}_features" for modality in compared for kind in get_modality(modality).item_kinds}

    def finished(self, model):
        model.config.temperatures = trained_temperatures(model)
        return model

    def processor(self, run, readers):
        return build_processor(run, readers)

    def experts(self, config):
        return config.num_experts

    def moe_layers(self, config):
        return config.moe_layer_indices

    def check(self, run, config, world_size):
        _check(run, config, world_size)

    def load_initial(self, model, folder: Path, processor):
        if is_tower(folder, refused=True):
            return load_tower(model, folder, processor.tokenizer)
        return InitialWeights(load_initial(model, folder, processor.tokenizer), sources_of(model, folder))

    def load_export(self, folder: Path):
        return load_weights(folder), load_processor(folder)

    def served_tasks(self, config, tasks):
        merged = set(config.merged_conditions)
        return [name for name in tasks if not merged or set(task_conditions(config, name)) <= merged]

    def cost(self, run):
        return ImpCost(run, self.config(run))

    def merge(self, model, tasks):
        return merge(model, tasks)

    def card(self, run, config, results, folder):
        return model_card.card(run, config, results, folder)


def _check(run: RunConfig, config: ImpConfig, world_size: int) -> None:
    """Raise UserError for sequences that do not fit, routing groups that hang on the ranks, and gates that lack a task."""
    seen = [(task, task_sequences(task, config, run.data)) for parent in run.tasks for task in parent.variants()]
    if config.routes_tokens:
        lengths = [(task, {name: found.length for name, found in sequences.items()}) for task, sequences in seen]
        check_groups(lengths, world_size, config.group_tokens, config.group_examples)
    if config.num_experts and config.gate in ("task", "attribute"):
        _check_evaluations(run, config)


def _check_evaluations(run: RunConfig, config: ImpConfig) -> None:
    """Gates that ask for the task need it from evaluations too; those of texts and captions name one already."""
    for evaluation in run.evaluations:
        composed = config.gate == "attribute" and evaluation.head == "likelihood" and evaluation.task is None
        named = evaluation.captioner is not None or evaluation.modality == "text" and evaluation.head == "pair"
        known = named or composed
        if not known and evaluation.task not in config.objectives:
            raise UserError(
                f"evaluation {evaluation.name}: the encoder's {config.gate} gates need a task of the run",
                got=evaluation.task or "no task", allowed=", ".join(config.objectives),
                fix=f"--set evaluations.{evaluation.name}.task={next(iter(config.objectives))}",
            )  # fmt: skip
