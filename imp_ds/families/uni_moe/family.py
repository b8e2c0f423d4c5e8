"""Uni-MoE as a family of models (`imp_ds.families.family.ModelFamily`)."""

from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.families import register_family
from imp_ds.families.family import ModelFamily
from imp_ds.families.uni_moe.answering import check_room, generate, prompt_inputs, room_for_answer
from imp_ds.families.uni_moe.assembly import Assembly
from imp_ds.families.uni_moe.cached_features import cached_features
from imp_ds.families.uni_moe.initial_weights import initialize_as_theirs, load_parts
from imp_ds.families.uni_moe.model_card import card
from imp_ds.families.uni_moe.processor import build_processor
from imp_ds.families.uni_moe.settings import UniMoeSettings
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.models.uni_moe import UniMoeForConditionalGeneration, UniMoeProcessor
from imp_ds.models.uni_moe.lora import CHANGES, merge_lora
from imp_ds.tasks import Batch


@register_family
class UniMoeFamily(ModelFamily):
    kind = "uni_moe"
    Settings = UniMoeSettings
    Model = UniMoeForTraining
    Processor = UniMoeProcessor
    commands = ("eval", "chat")

    def processor(self, run, readers):
        return build_processor(run, readers)

    def experts(self, config):
        return config.num_experts

    def build(self, config, *, seed, ep_size):
        model = super().build(config, seed=seed, ep_size=ep_size)
        initialize_as_theirs(model, seed)
        return model

    def assembly(self, run, config):
        return Assembly(run, config) if isinstance(run.model.language_model, str) else None

    def load_parts(self, run, model):
        return load_parts(run.model, model.uni_moe)

    def may_be_fresh(self, name):
        return CHANGES in name

    def check(self, run, config, world_size):
        super().check(run, config, world_size)
        if run.model.lora is not None and run.train.trainable is None:
            raise UserError(
                "model.lora beside a model that is trained as a whole", got="train.trainable is not set",
                allowed='patterns of what is trained: "*.lora.*" is all of LoRA, "uni_moe.connectors.*" the connectors',
                fix="--set 'train.trainable=[\"*.lora.*\"]'",
            )  # fmt: skip

    def finished(self, model):
        merge_lora(model)
        return model

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

    def answer(self, model, processor, conversation, **how):
        inputs = prompt_inputs(processor, [conversation])
        how = {"max_new_tokens": room_for_answer(model, inputs)} | how
        check_room(model, inputs, how["max_new_tokens"])
        return generate(model, processor, inputs, **how)[0]

    def card(self, run, config, results, folder):
        return card(config, self.moe_layers(config), folder)

    def shapes(self, run, task, samples):
        """One medium of each kind that the model reads in each conversation."""
        config, length = self.config(run), task.views.messages.length
        ids_BL = torch.empty(samples, length, dtype=torch.int64, device="meta")
        inputs = {"input_ids": ids_BL, "attention_mask": ids_BL}
        for kind, shapes in config.media_shapes.items():
            inputs |= {
                name: torch.empty(samples, 1, *shape, device="meta")
                for name, shape in shapes.items()
            }
            inputs[f"{kind}_count"] = ids_BL[:, 0]
        return Batch(task.name, {"messages": inputs}, {"labels": ids_BL})
