"""Uni-MoE as a family of models (`imp_ds.families.family.ModelFamily`)."""

from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.families import register_family
from imp_ds.families.build import meta_module
from imp_ds.families.family import ModelFamily
from imp_ds.families.trainable import is_trained
from imp_ds.families.uni_moe.adapters.export import write_adapter
from imp_ds.families.uni_moe.answering import check_room, generate, prompt_inputs, room_for_answer
from imp_ds.families.uni_moe.assembly import Assembly
from imp_ds.families.uni_moe.cached_features import cached_features
from imp_ds.families.uni_moe.costs.cost import UniMoeCost
from imp_ds.families.uni_moe.expert_slots import check_slots, slot_sources
from imp_ds.families.uni_moe.initial_weights import initialize_as_theirs, load_parts
from imp_ds.families.uni_moe.model_card import card, stock_card
from imp_ds.families.uni_moe.processor import build_processor
from imp_ds.families.uni_moe.settings import UniMoeSettings
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.models.uni_moe import UniMoeConfig, UniMoeForConditionalGeneration, UniMoeProcessor
from imp_ds.models.uni_moe.lora import CHANGES, merge_lora
from imp_ds.models.uni_moe.stock_llava import save_stock_llava, stock_generation
from imp_ds.models.uni_moe.stock_model import save_stock_model


@register_family
class UniMoeFamily(ModelFamily):
    kind = "uni_moe"
    Settings = UniMoeSettings
    Model = UniMoeForTraining
    Processor = UniMoeProcessor
    commands = ("eval", "chat")
    recorded = ("expert_sources",)

    def auto_classes(self):
        models = ("AutoModelForMultimodalLM", "AutoModelForCausalLM")
        model = dict.fromkeys(models, UniMoeForConditionalGeneration)
        return {"AutoConfig": UniMoeConfig, **model, "AutoProcessor": UniMoeProcessor}

    def processor(self, run, readers):
        return build_processor(run, readers)

    def origins(self, run, saved):
        return {"expert_sources": slot_sources(run.model.experts, None if saved is None else saved.get("expert_sources"))}

    def experts(self, config):
        return config.num_experts

    def build(self, config, *, seed, ep_size):
        model = super().build(config, seed=seed, ep_size=ep_size)
        initialize_as_theirs(model, seed)
        return model

    def assembly(self, run, config):
        if isinstance(run.model.language_model, str):
            return Assembly(run, config)
        if run.model.experts:
            got, fix = "model.language_model is a configuration", "--set model.language_model=FOLDER of the model they began as"
            raise UserError("experts of model.experts belong to a language model that was trained", got=got, fix=fix)
        return None

    def load_parts(self, run, model):
        return load_parts(run.model, model.uni_moe)

    def may_be_fresh(self, name):
        return CHANGES in name

    def check(self, run, config, world_size):
        super().check(run, config, world_size)
        if run.model.adapter is not None and run.train.init_from is not None:
            fix = "set model.language_model to that folder, and towers and connectors beside it"
            raise UserError("an adapter beside train.init_from", got=f"model.adapter = {run.model.adapter}", fix=fix)
        if config.lora is not None and run.train.trainable is None:
            raise UserError(
                "model.lora beside a model that is trained as a whole", got="train.trainable is not set",
                allowed='patterns of what is trained: "*.lora.*" is all of LoRA, "uni_moe.connectors.*" the connectors',
                fix="--set 'train.trainable=[\"*.lora.*\"]'",
            )  # fmt: skip
        self._check_lora(run, config)
        there = {slot: folder for slot, folder in run.model.experts.items() if Path(folder).is_dir()}
        check_slots(there, config.text_config)
        named = [f"model.experts.{slot}" for slot in run.model.experts] + list(run.model.connector_starts())
        if run.train.init_from is not None and named:
            raise UserError(
                "two models that the run would start from", got=f"train.init_from, and {', '.join(named)}",
                allowed="one: train.init_from has all weights of a model", fix="leave one out",
            )  # fmt: skip

    def _check_lora(self, run, config) -> None:
        names = [name for name, _ in meta_module(self.Model, config).named_parameters() if CHANGES in name]
        if run.model.lora is not None and not any(is_trained(name, run.train.trainable) for name in names):
            raise UserError(
                "model.lora is not trained: no pattern of train.trainable is of it", got=", ".join(run.train.trainable),
                fix='add "*.lora.*", which is all of LoRA; or leave model.lora out',
            )  # fmt: skip

    def finished(self, model):
        merge_lora(model)
        return model

    def write_adapter(self, run, model, processor, folder, out):
        write_adapter(run, model, processor.tokenizer, folder, out)

    def media_features(self, run, model, processor, readers, hashes, report):
        return cached_features(run, model, processor, readers, hashes, report)

    def load_export(self, folder: Path):
        transformers_logging.disable_progress_bar()
        again = "export it again: imp_ds export RUN OUT"
        processor = foreign_code.load(UniMoeProcessor, folder, "the processor cannot be loaded", fix=again, local_files_only=True)
        inner = foreign_code.load(
            UniMoeForConditionalGeneration, folder, "the model cannot be loaded", fix=again, local_files_only=True
        )  # fmt: skip
        with torch.device("meta"):
            model = UniMoeForTraining(inner.config)
        model.uni_moe = inner
        return model, processor

    def name_of(self, key):
        return key if key.startswith("uni_moe.") else f"uni_moe.{key}"

    def save_stock(self, model, processor, folder):
        if model.config.towers:
            save_stock_llava(model.uni_moe, processor, folder)
            return stock_card("AutoModelForImageTextToText", "AutoProcessor")
        save_stock_model(model.uni_moe.language_model, folder)
        stock_generation(model.uni_moe, model.config.text_config.vocab_size).save_pretrained(folder)
        processor.tokenizer.chat_template = processor.chat_template
        processor.tokenizer.save_pretrained(folder)
        return stock_card("AutoModelForCausalLM", "AutoTokenizer")

    def answer(self, model, processor, conversation, **how):
        inputs = prompt_inputs(processor, [conversation])
        how = {"max_new_tokens": room_for_answer(model, inputs)} | how
        check_room(model, inputs, how["max_new_tokens"])
        return generate(model, processor, inputs, **how)[0]

    def card(self, run, config, results, folder):
        return card(run, config, self.moe_layers(config), folder)

    def folders(self, run):
        model = run.model
        parts = {"language_model": model.language_model} | {f"{kind}_tower": part for kind, part in model.towers.items()}
        parts |= {"adapter": model.adapter} | {f"experts.{slot}": folder for slot, folder in model.experts.items()}
        found = {f"model.{field}": part for field, part in parts.items() if isinstance(part, str)}
        return super().folders(run) | found | {field: folder for field, (_, folder) in model.connector_starts().items()}

    def cost(self, run):
        return UniMoeCost(run, meta_module(self.Model, self.config(run)))
