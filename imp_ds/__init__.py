"""imp_ds: training of sparse multimodal models on DeepSpeed, by alternating gradient descent.

Importing it makes the Auto classes of transformers know the models; it needs neither deepspeed nor datasets nor a GPU.
"""

from transformers import AutoModelForPreTraining

from imp_ds.models.imp import ImpConfig, ImpModel, ImpProcessor
from imp_ds.pretraining import ImpForPreTraining

AutoModelForPreTraining.register(ImpConfig, ImpForPreTraining)

__all__ = ["ImpConfig", "ImpForPreTraining", "ImpModel", "ImpProcessor"]
