"""What is learned. An objective owns its head; adding one is a file here, its spec in tasks.py, and its line below."""

from imp_ds.objectives.captioning import CaptioningObjective
from imp_ds.objectives.classification import ClassificationObjective
from imp_ds.objectives.contrastive import ContrastiveObjective
from imp_ds.objectives.likelihood import build_likelihood
from imp_ds.objectives.masked_language import MaskedLanguageObjective
from imp_ds.objectives.named_classes import NamedClassesObjective
from imp_ds.objectives.objective import Objective

OBJECTIVES = {
    "contrastive": ContrastiveObjective,
    "classification": ClassificationObjective,
    "named_classes": NamedClassesObjective,
    "masked_language": MaskedLanguageObjective,
    "likelihood": build_likelihood,
    "captioning": CaptioningObjective,
}


def build_objective(spec: dict, config) -> Objective:
    """The objective of a spec, a dict as `imp_ds.tasks` describes it (its "kind" names the class), for a model of `config`
    (an ImpConfig)."""
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "weight")}
    return OBJECTIVES[spec["kind"]](config, **arguments)
