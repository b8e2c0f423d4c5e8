"""The objective of language models: each token of an answer is predicted from all that stands before it."""

from typing import Literal

from pydantic import Field

from imp_ds.objectives.objective import ModelObjective, Needs
from imp_ds.objectives.registry import register


@register
class NextToken(ModelObjective):
    """What the assistant says in conversations, token by token; models of the family uni_moe compute it."""

    kind: Literal["next_token"] = Field("next_token", description="which objective this is")

    def needs(self):
        return Needs(frozenset(["messages"]))

    def check_model(self, config, task):
        if config.model_type != "uni_moe":
            super().check_model(config, task)

    def describe(self):
        return "the next token of what the assistant says"
