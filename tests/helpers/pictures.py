"""Sixteen pictures with captions, a task that says the captions, and a model that can learn it in seconds.

Shapes: B pictures, L patches, P values of a patch, T words of a caption.
"""

import torch

from imp_ds import ImpConfig, ImpForPreTraining
from imp_ds.modalities.positions import grid_positions
from imp_ds.modalities.text import tokens as text
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Captioning, task_entry
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch, Source, Task

COLOURS, THINGS, ROOMS = ("red", "blue", "green", "black"), ("ball", "cup", "lamp", "chair"), ("hall", "yard", "cellar", "attic")
CAPTIONS = [
    f"a {colour} {thing} stands in the {ROOMS[(i + 2 * j) % 4]}"
    for i, colour in enumerate(COLOURS)
    for j, thing in enumerate(THINGS)
]
LENGTH = 12
TASK = Task(
    name="captions", source=Source(path="pictures", vision="file_name", text="text"),
    views=Views(vision=VisionView(height=8, width=8), text=TextView(length=LENGTH)),
    objectives=[Captioning(modality="vision")], batch_size=16,
)  # fmt: skip
TOKENIZER = train_tokenizer(CAPTIONS, 120)
SHAPE = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vision_patch=(1, 4, 4),
    vision_max=(1, 8, 8), audio_patch=(4, 4), audio_max=(16, 16), text_max=16, common_dim=32,
)  # fmt: skip


def small_config(**changes) -> ImpConfig:
    """A dense encoder of two blocks, or what `changes` make of it."""
    known = dict(vocab_size=len(TOKENIZER), mask_token_id=TOKENIZER.mask_token_id, end_token_id=text.end_id(TOKENIZER))
    objectives = {TASK.name: task_entry([objective.model_dump(mode="json") for objective in TASK.objectives])}
    return ImpConfig(**{**SHAPE, **known, "objectives": objectives, **changes})


def small_model(**changes) -> ImpForPreTraining:
    torch.manual_seed(0)
    return ImpForPreTraining(small_config(**changes))


def pictures(rows: list[int]) -> dict[str, torch.Tensor]:
    """The inputs of the pictures of these rows: four patches of a colour and a thing, which is noise of its own for each."""
    noise = torch.randint(0, 256, (8, 2, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = torch.stack([torch.cat([noise[row // 4], noise[4 + row % 4]]) for row in rows])
    return {"pixel_values": values, "pixel_positions": torch.from_numpy(grid_positions(1, 2, 2)).expand(len(rows), -1, -1)}


def batch_of(rows: list[int], step: int = 0) -> Batch:
    """The pictures and captions of these rows, as the collator makes them."""
    target_BT = torch.from_numpy(text.preprocess_captions([CAPTIONS[row] for row in rows], TOKENIZER, LENGTH))
    return Batch(TASK.name, {"vision": pictures(rows)}, {"caption": target_BT}, sample_keys(0, step, 0, len(rows)))
