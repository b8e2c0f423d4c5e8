"""imp_ds: training of sparse multimodal models on DeepSpeed, by alternating gradient descent.

Importing it makes the Auto classes of transformers know the models; it needs neither deepspeed nor datasets nor a GPU.

A recipe file imports the records of a run from here, `from imp_ds import RunConfig, Task, Source, ...`, and a program trains with
`from imp_ds import get_recipe, train`, `train(get_recipe("my_recipe.py"), "runs/mine")`; they are loaded when asked for.
"""

import os
import sys
from importlib import import_module

_HOMES = {
    "ImpConfig": "imp_ds.models.imp",
    "ImpModel": "imp_ds.models.imp",
    "ImpProcessor": "imp_ds.models.imp",
    "ImpForPreTraining": "imp_ds.families.imp.pretraining",
    "UniMoeConfig": "imp_ds.models.uni_moe",
    "UniMoeForConditionalGeneration": "imp_ds.models.uni_moe",
    "UniMoeProcessor": "imp_ds.models.uni_moe",
}
_RECORDS = {
    "imp_ds.families.imp.settings": ("ModelSettings",),
    "imp_ds.families.uni_moe.settings": ("UniMoeSettings", "ConnectorSettings"),
    "imp_ds.models.uni_moe.lora": ("LoraSettings",),
    "imp_ds.config": ("RunConfig", "DataSettings", "TrainSettings", "OptimizerSettings"),
    "imp_ds.modalities.decoding_settings": ("DecodingSettings",),
    "imp_ds.modalities.views": ("Views", "Augmentation"),
    "imp_ds.modalities.vision.view": ("VisionView",),
    "imp_ds.modalities.audio.view": ("AudioView", "AudioSettings"),
    "imp_ds.modalities.text.view": ("TextView",),
    "imp_ds.modalities.sensors": ("SensorsView",),
    "imp_ds.modalities.messages.view": ("MessagesView", "MessagesSettings"),
    "imp_ds.tasks": (
        "Task", "Source",
    ),
    "imp_ds.evaluation_record": ("Evaluation",),
    "imp_ds.objectives": (
        "Contrastive", "Classification", "NamedClasses", "MaskedLanguage", "Likelihood", "Captioning", "NextToken",
    ),
    "imp_ds.stages": ("StagedRun", "Stage"),
    "imp_ds.recipes": ("get_recipe",),
}  # fmt: skip
_LATER = {name: home for home, names in _RECORDS.items() for name in names}
__all__ = sorted([*_HOMES, *_LATER, "train"])


def __getattr__(name: str):
    if name == "train":  # the package, which can be called
        return import_module("imp_ds.train")
    home = _HOMES.get(name) or _LATER.get(name)
    if home is None:
        raise AttributeError(f"module 'imp_ds' has no attribute {name!r}")
    return getattr(import_module(home), name)


def _is_command() -> bool:
    """Whether this import is the first half of `python -m imp_ds` or of the program `imp_ds`: help should not wait seconds for
    torch, and a rank should watch its launcher before that."""
    words = sys.orig_argv
    if sys.argv and os.path.basename(sys.argv[0]) == "imp_ds":
        return True
    return sys.argv[:1] == ["-m"] and "-m" in words and words[words.index("-m") + 1 :][:1] == ["imp_ds"]


if not _is_command():
    for _home in dict.fromkeys(_HOMES.values()):
        import_module(_home)
