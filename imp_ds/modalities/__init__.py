"""All that is particular to a modality: one file or package for each, behind `imp_ds.modalities.modality.Modality`.

Adding one is a file here and its line in `imp_ds.registry.MODALITIES`.
"""

from imp_ds.modalities.modality import Modality, ModalityName, PatchModality, Preprocessed, get_modality, register_modality
from imp_ds.modalities.sides import JOINED, SideName
from imp_ds.registry import MODALITIES

__all__ = [
    "JOINED", "MODALITIES", "Modality", "ModalityName", "PatchModality", "Preprocessed", "SideName", "get_modality",
    "register_modality",
]  # fmt: skip
