"""How well the hidden words of a split's texts are found, by the head of a masked language task.

Shapes: B texts of a batch, K tokens of a text that are computed.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from imp_ds.errors import UserError
from imp_ds.evaluation.evaluator import Evaluator, register_evaluator
from imp_ds.evaluation.metric import Metric, Shown
from imp_ds.evaluation.split import Split
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.modalities.text import tokens as text
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.objectives.candidates import VocabularyTokens
from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import on_main, rank, world_size
from imp_ds.tasks import Batch, Task

_SEED = 0  # the same words are hidden in every run, at every step, on any number of ranks


@register_evaluator
class MaskedLanguageEvaluator(Evaluator):
    """`run(model)` yields, over all hidden tokens of the split:

    masked_language/{name}/accuracy: share whose best word is the right one;
    masked_language/{name}/perplexity: exp of their mean cross-entropy.

    Here each token counts the same, as is usual where models are compared; in training each text does.

    Args:
        record: the evaluation, of modality text.
        task: the one of the record's name, whose rate and head are used.
        captions: one of each row; a row with an empty one is left out, and counted as left_out/{name} where there are any.
        tokenizer: of the model.
        batch_size: texts of a batch of each rank. Every rank encodes equally many batches.

    Raises UserError for a record without a text view, a task that hides no words, and when there is nothing to measure.
    """

    kind = "masked_language"
    family = "imp"
    reads_heads = True

    def __init__(self, record: Evaluation, task: Task, captions: list[str], tokenizer, *, batch_size: int = 64):
        _check(record, task, captions)
        self.record, self.task, self.tokenizer, self.batch_size = record, task, tokenizer, batch_size
        self.left_out = sum(not caption for caption in captions)
        self._rows = [(row, caption) for row, caption in enumerate(captions) if caption]

    @classmethod
    def serves(cls, run, record: Evaluation) -> bool:
        return record.captioner is None and record.modality == "text" and record.head == "pair"

    @classmethod
    def build(cls, split: Split, record: Evaluation) -> "MaskedLanguageEvaluator":
        task, captions = split.run.task(record.name), split.first_captions(record.source)
        return cls(record, task, captions, split.processor.tokenizer, batch_size=split.batch_size)

    def run(self, model: ImpForPreTraining) -> Iterator[Metric]:
        """All ranks call this together and get the same values. Raises UserError, on all of them, for a text without tokens."""
        objective = next(part for part in model.objectives[self.task.name].parts if hasattr(part, "hidden"))
        kept = {}  # the words are encoded once
        device = next(model.parameters()).device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for number in range(-(-len(self._rows) // (self.batch_size * world_size()))):
            # a rank that cannot make its batch reports it to the others, which would wait for it in the next exchange
            batch = on_main(partial(self._batch, number), "a batch cannot be made", every_rank=True).to(device)
            encodings = model.encode(batch, kept)
            kept = {name: encoding for name, encoding in encodings.items() if name == VocabularyTokens.name}
            loss_BK, found_BK, hidden_BK = objective.answers(model.imp, encodings, batch.targets["token_ids"])
            sums += torch.stack([loss_BK.double().sum(), found_BK.sum(), hidden_BK.sum()])
        loss, found, hidden = gather_rows(sums[None]).sum(0)
        name = self.record.name
        if not hidden:
            raise UserError(
                f"evaluation {name}: no word of its texts can be hidden", fix="see that data.tokenizer knows their script"
            )
        if self.left_out:
            yield Metric(f"left_out/{name}", float(self.left_out), "count")
        shown = Shown("hidden words"), Shown("hidden words", "perplexity ")
        yield Metric(f"masked_language/{name}/accuracy", (found / hidden).item(), "share", "higher", shown[0])
        yield Metric(f"masked_language/{name}/perplexity", (loss / hidden).exp().item(), "", "lower", shown[1])

    def _batch(self, number: int) -> Batch:
        """This rank's texts of a batch. What fills the last batch up is the last text, of which nothing is to be found."""
        first = (number * world_size() + rank()) * self.batch_size
        positions = np.arange(first, first + self.batch_size)
        rows, texts = zip(*(self._rows[min(position, len(self._rows) - 1)] for position in positions))
        rngs = [np.random.default_rng([_SEED, row]) for row in rows]
        made = text.preprocess_masked(list(texts), self.tokenizer, self.record.views.text.length, self.task.needs.mask_rate, rngs)
        made["token_ids"][positions >= len(self._rows)] = IGNORED
        made = {name: torch.from_numpy(values) for name, values in made.items()}
        return Batch(self.task.name, {"text": {name: made[name] for name in text.INPUT_NAMES}}, {"token_ids": made["token_ids"]})


def _check(record: Evaluation, task: Task, captions: list[str]) -> None:
    where = f"evaluation {record.name}"
    if record.views.text is None:
        raise UserError(f"{where} lacks a view", got=", ".join(record.views.names()) or "none", allowed="views.text")
    if not task.needs.mask_rate:
        raise UserError(
            f"{where}: the task {task.name} hides no words", got=", ".join(objective.kind for objective in task.objectives),
            allowed="an objective of kind masked_language, or of kind likelihood among the vocabulary",
            fix="give the evaluation the name of a task that has one",
        )  # fmt: skip
    if not any(captions):
        raise UserError(f"{where} measures nothing", got="no text that can be read", fix="see to source.text")
