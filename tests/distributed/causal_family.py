"""The causal model as a family of its own, as another package would register it: settings, objective, processor, evaluator."""

from typing import Literal

import torch
from pydantic import Field
from transformers import AutoTokenizer, ProcessorMixin

from helpers.causal_model import WIDTH, CausalConfig, CausalModel, token_losses
from imp_ds.data.corpus import all_captions
from imp_ds.evaluation import Evaluator, Metric, Shown, register_evaluator
from imp_ds.evaluation.embedding import embed_by
from imp_ds.families import register_family
from imp_ds.families.card import Card
from imp_ds.families.family import ModelFamily
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.model_settings import FamilySettings
from imp_ds.objectives import ModelObjective, Needs, register


@register
class NextToken(ModelObjective):
    """Each token of a text from those before it."""

    kind: Literal["next_token"] = Field("next_token", description="which objective this is")

    def needs(self):
        return Needs(frozenset(["text"]))

    def describe(self):
        return "the next token of a text"


class CausalSettings(FamilySettings):
    family: Literal["causal_moe"] = Field("causal_moe", description="which kind of model this is")
    drop_tokens: bool = Field(False, description="whether experts have a capacity")

    def to_config(self, vocab_size, tasks, tokenizer=None):
        return CausalConfig(vocab_size, self.drop_tokens)


class CausalProcessor(ProcessorMixin):
    def __init__(self, tokenizer):
        super().__init__(tokenizer)

    @classmethod
    def _get_arguments_from_pretrained(cls, folder, processor_dict=None, **kwargs):
        return [AutoTokenizer.from_pretrained(folder, **kwargs)]


@register_evaluator
class TokenLoss(Evaluator):
    """`run(model)` yields tokens/{name}/loss: the mean over all tokens of the split."""

    kind = "token_loss"
    family = "causal_moe"

    def __init__(self, split, record):
        super().__init__(split, record)
        self.batches = split.batches(record.source, record.views, record.name)

    def run(self, model):
        def embed(batch):
            logits_BLV, reports = model.logits(**batch.inputs["text"])
            loss_BL = token_losses(logits_BLV, batch)
            yield "text", torch.stack([loss_BL.sum(1), (loss_BL != 0).sum(1).float()], dim=1), reports

        found = embed_by(embed, self.batches(), next(model.parameters()).device, unit=False)
        loss, tokens = found.vectors["text"].double().sum(0).tolist()
        self.usage = found.usage
        yield Metric(f"tokens/{self.record.name}/loss", loss / tokens, "nats", "lower", Shown("tokens", "loss "))


@register_family
class CausalFamily(ModelFamily):
    kind = "causal_moe"
    Settings = CausalSettings
    Model = CausalModel
    Processor = CausalProcessor

    def processor(self, run, readers):
        return CausalProcessor(train_tokenizer(all_captions(readers), run.data.vocab_size, seed=run.data.seed))

    def card(self, run, config, results, folder):
        said = f"A causal language model of two layers, of which each token meets two of four experts; width {WIDTH}."
        return Card(about=said, tags=["causal-moe"], sections=["## Loading", f"`CausalModel.from_pretrained({folder!r})`"])
