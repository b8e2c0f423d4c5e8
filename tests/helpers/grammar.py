"""A grammar of a few sentences, a task that hides their words, and a model that can learn it in seconds."""

import torch

from imp_ds import ImpForPreTraining
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.objectives import MaskedLanguage
from imp_ds.tasks import Source, Task

AUDIOS = dict(dog="barks", cat="meows", cow="moos", duck="quacks", lion="roars", bee="hums", horse="neighs", wolf="howls")
SENTENCES = [f"{start} {animal} {waveform}" for animal, waveform in AUDIOS.items() for start in ("the", "a")]
TASK = Task(
    name="words", source=Source(path="sentences", text="text"), views=Views(text=TextView(length=6)),
    objectives=[MaskedLanguage(rate=0.34)], batch_size=16,
)  # fmt: skip


def small_model(vocab_size: int) -> ImpForPreTraining:
    """Two blocks, one with experts, which route each text by itself."""
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_experts=2, text_max=8)
    torch.manual_seed(0)
    return ImpForPreTraining(ModelSettings(moe_layers="last:1", group_examples=1, **shape).to_config(vocab_size, [TASK]))
