"""What is learned. An objective is one file here, with its record, its module and its costs, and its line below.

From outside of the package: a subclass of `ObjectiveRecord` under `@register`, in a module that the recipe imports.
"""

from imp_ds.objectives.captioning import Captioning
from imp_ds.objectives.classification import Classification
from imp_ds.objectives.contrastive import Contrastive
from imp_ds.objectives.likelihood import Likelihood
from imp_ds.objectives.masked_language import MaskedLanguage
from imp_ds.objectives.named_classes import NamedClasses
from imp_ds.objectives.next_token import NextToken
from imp_ds.objectives.objective import ClassObjective, ModelObjective, Needs, Objective, ObjectiveRecord, StepShape
from imp_ds.objectives.registry import build_objective, register, task_entry

__all__ = [
    "Captioning", "ClassObjective", "Classification", "Contrastive", "Likelihood", "MaskedLanguage", "ModelObjective",
    "NamedClasses", "Needs", "NextToken", "Objective", "ObjectiveRecord", "StepShape",
    "build_objective", "register", "task_entry",
]  # fmt: skip
