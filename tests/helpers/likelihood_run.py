"""A run of tasks whose answers are found among candidates, and its batches.

Shapes: B samples of the global batch, L tokens of a text.
"""

import torch

from helpers.small_run import VOCABULARY, make_batch, make_run
from imp_ds.config import RunConfig
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.objectives import Likelihood
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch, Task

SIZE = 8
ORDER = ("names", "pairs", "words")
NAMES = ["a", ["b c", "d"], "e f g", "h", ["i", "j k", "l m n o"], "p", "q r"]  # seven: the second rank has three of them
TOKENS = dict(router="top_k", drop_tokens=False, router_noise=1.0, router_balance=0.01, hidden_dropout=0.1)


class Letters:
    """A tokenizer of a token for each letter. Called on texts -> input_ids."""

    mask_token_id, pad_token_id, eos_token_id = VOCABULARY - 1, 0, None
    sep_token_id = None

    def __call__(self, texts):
        return {"input_ids": [[1 + ord(letter) - ord("a") for letter in text.split()] for text in texts]}


def likelihood_run(ep_size: int = 1) -> RunConfig:
    """Seven names of images, images with texts, hidden words: with experts for each token, noise and dropout."""
    run = make_run(ep_size=ep_size, **TOKENS)
    source, views = run.task("image_text").source, run.task("image_text").views
    objectives = {
        "names": Likelihood(inputs=["vision"], candidates=NAMES, templates=["{}", "z {}"], label_smoothing=0.1),
        "pairs": Likelihood(inputs=["vision"], candidates="batch"),
        "words": Likelihood(inputs=["text"], candidates="vocabulary", rate=0.3),
    }
    run.tasks = [Task(name=n, source=source, views=views, objectives=[o], batch_size=SIZE) for n, o in objectives.items()]
    return run


def likelihood_config(run: RunConfig):
    return run.model.to_config(VOCABULARY, run.tasks, Letters())


def likelihood_batch(step: int) -> Batch:
    """The global batch of a step; of its texts 0 to 3 tokens are hidden, more of them on the second rank."""
    batch = make_batch(3 * step)
    draw = torch.Generator().manual_seed(step)
    labels_BL = batch.inputs["text"]["input_ids"]
    hidden_BL = torch.rand(labels_BL[:, :3].shape, generator=draw).argsort(1) < torch.arange(SIZE)[:, None] // 2
    hidden_BL = torch.nn.functional.pad(hidden_BL, (0, labels_BL.shape[1] - 3))
    batch.targets = {
        "label": torch.randint(0, 7, (SIZE,), generator=draw),
        "token_ids": labels_BL.where(hidden_BL, torch.full_like(labels_BL, IGNORED)),
    }
    return Batch(ORDER[step % 3], batch.inputs, batch.targets, sample_keys(0, step, 0, SIZE))
