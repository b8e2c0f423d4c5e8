"""What is learned. An objective owns its head; adding one is a file here, its spec in tasks.py, and its line below."""

from torch import nn

from imp_ds.objectives.classification import ClassificationObjective
from imp_ds.objectives.contrastive import ContrastiveObjective
from imp_ds.objectives.masked_language import MaskedLanguageObjective

OBJECTIVES = {
    "contrastive": ContrastiveObjective,
    "classification": ClassificationObjective,
    "masked_language": MaskedLanguageObjective,
}


def build_objective(spec: dict, config) -> nn.Module:
    """The objective of a spec, a dict as `imp_ds.tasks` describes it (its "kind" names the class), for a model of `config`
    (an ImpConfig)."""
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "weight")}
    return OBJECTIVES[spec["kind"]](config, **arguments)
