"""IMP as a family of models (`imp_ds.families.family.ModelFamily`)."""

from pathlib import Path

from imp_ds.families import register_family
from imp_ds.families.family import ModelFamily
from imp_ds.families.imp import checks, model_card
from imp_ds.families.imp.costs.cost import ImpCost
from imp_ds.families.imp.initial_weights import load_initial, sources_of
from imp_ds.families.imp.merging import merge
from imp_ds.families.imp.model_folder import load_processor, load_weights
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.processor import build_processor
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.models.imp.conditions import task_conditions
from imp_ds.models.imp.processing_imp import ImpProcessor


@register_family
class ImpFamily(ModelFamily):
    kind = "imp"
    Settings = ModelSettings
    Model = ImpForPreTraining
    Processor = ImpProcessor

    def processor(self, run, readers):
        return build_processor(run, readers)

    def experts(self, config):
        return config.num_experts

    def moe_layers(self, config):
        return config.moe_layer_indices

    def check(self, run, config, world_size):
        checks.check(run, config, world_size)

    def load_initial(self, model, folder: Path, processor):
        return load_initial(model, folder, processor.tokenizer), sources_of(model, folder)

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
