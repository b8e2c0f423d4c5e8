"""Masked language modelling: the hidden words of a text are found from the rest of it (BERT, arXiv 1810.04805, section 3.1).

The loss is the mean over a text's hidden tokens, then over the texts. In BERT and Uni-Perceiver every text is full, so all have
equally many hidden tokens and this is their mean over all of them; where lengths differ, each text counts the same, as it does
in the other objectives. The mean over a rank's texts is so its share of the global mean without any exchange, and that over
the texts of a micro-batch is the micro-batch's share of the batch.

Shapes: B texts of this rank, L tokens of a text, K tokens of a text that are computed, N = B * K, D width, V words of the
vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from transformers import initialization as init

from imp_ds.costs import FLOAT32, Kernel, passes, product
from imp_ds.modalities.text.masking import IGNORED, most_hidden
from imp_ds.models.imp.conditions import Sides
from imp_ds.objectives.objective import Needs, Objective, ObjectiveRecord, StepShape
from imp_ds.objectives.registry import register


@register
class MaskedLanguage(ObjectiveRecord):
    """Masked language modelling (BERT, arXiv 1810.04805): whole words, of which 80% become the mask token, 10% another token."""

    kind: Literal["masked_language"] = Field("masked_language", description="which objective this is")
    rate: float = Field(0.15, gt=0.0, lt=1.0, description="share of the words that are to be found")

    def needs(self):
        return Needs(frozenset(["text"]), mask_rate=self.rate)

    def sides(self):
        return Sides(frozenset(["text"]), frozenset(["text"]))

    def kernels(self, shape: StepShape) -> list[Kernel]:
        """The head on as many tokens of each text as may be hidden, and the cross-entropy of all tokens, in float32."""
        width, words, size = shape.config.hidden_size, shape.config.vocab_size, shape.value_bytes
        samples, length = shape.samples, shape.lengths["text"]
        rows = samples * most_hidden(length, self.rate)
        # the gradient of all tokens is filled with zeros, written into and added
        chosen = (3 * samples * length + 3 * rows) * width
        table = 3 * words * width  # its gradient is added to that of the words that are read
        # bias and its gradient, to float32 and back; softmax, best word, the gradients of both parts of the loss
        scores = rows * words * (5 * size + 9 * FLOAT32)
        return [
            product(rows, width, width, size),
            passes("gelu", 5 * rows * width * size, 1),
            passes("norm", 5 * rows * width * size, 1),
            product(rows, width, words, size),
            passes("copy", (chosen + table) * size + scores, 9),
        ]

    def loss_values(self, shape):
        return score_values(shape, most_hidden(shape.lengths["text"], self.rate))

    def describe(self):
        return f"hidden words, {100 * self.rate:g} %"

    def build(self, config, known):
        return MaskedLanguageObjective(config, self.rate)


def score_values(shape: StepShape, rows: int) -> float:
    """Values of the scores of all tokens for `rows` tokens of each sample: three times at the head of the backward, where the
    softmax and the gradients of loss and scores are there together."""
    return 3 * shape.samples * rows * shape.config.vocab_size


class TokenHead(nn.Module):
    """From a token's state to a score for every word (BERT's release, `run_pretraining.py`): dense, GELU, norm, and the product
    with the words' own vectors, those of the encoder's embedding, and a bias. forward: (model, states [N, D]) -> [N, V]."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def initialize_parameters(self) -> None:
        init.zeros_(self.bias)

    @torch.no_grad()
    def resize_tokens(self, count: int) -> None:
        """Follow a vocabulary that now has `count` words: the biases of new ones are 0, as at the start of training."""
        kept = self.bias[:count]
        self.bias = nn.Parameter(F.pad(kept, (0, count - len(kept))), requires_grad=self.bias.requires_grad)

    def forward(self, model, states_ND: torch.Tensor) -> torch.Tensor:
        hidden_ND = self.norm(F.gelu(self.dense(states_ND), approximate="tanh"))
        return model.score_tokens(hidden_ND) + self.bias


class MaskedTokens:
    """What is computed of texts with hidden words, whoever scores the words.

    Targets are int64 [B, L]: the tokens to be found, -100 elsewhere. Of each text `most_hidden(L, rate)` tokens are computed, the
    hidden ones first: a fixed number, for which no host waits, and seldom more than a third of them. Texts without a hidden token
    cost nothing and count as one without a hit.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def loss(self, loss_BK: torch.Tensor, found_BK: torch.Tensor, hidden_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From the `answers`: the mean loss, and the share of each text's words that were found, [B]."""
        count_B = hidden_BK.sum(1).clamp(min=1)
        return (loss_BK.sum(1) / count_B).mean(), found_BK.sum(1) / count_B

    def answers(
        self, score: Callable[[torch.Tensor], torch.Tensor], tokens_BLD: torch.Tensor, labels_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each computed token, [B, K]: its cross-entropy (float32), whether its best word is the right one, and whether it
        was hidden at all; both others are 0 and False where it was not. `score`: states [N, D] -> scores of all tokens [N, V]."""
        hidden_first_BL = (labels_BL == IGNORED).to(torch.int8).argsort(dim=1, stable=True)
        index_BK = hidden_first_BL[:, : most_hidden(labels_BL.shape[1], self.rate)]
        label_BK = labels_BL.gather(1, index_BK)
        states_BKD = tokens_BLD.take_along_dim(index_BK[..., None], dim=1)
        scores_NV = score(states_BKD.flatten(0, 1)).float()
        loss_N = F.cross_entropy(scores_NV, label_BK.flatten(), ignore_index=IGNORED, reduction="none")
        best_N = scores_NV.detach().argmax(1)
        return loss_N.view_as(label_BK), best_N.view_as(label_BK) == label_BK, label_BK != IGNORED


class MaskedLanguageObjective(Objective):
    """Cross-entropy of the masked tokens of targets["token_ids"], by a head of the task's own."""

    def __init__(self, config, rate: float):
        super().__init__()
        self.hidden = MaskedTokens(rate)
        self.head = TokenHead(config)

    def answers(self, model, encodings: dict, labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `MaskedTokens.answers`."""
        return self.hidden.answers(partial(self.head, model), encodings["text"].tokens_BLD, labels_BL)

    def forward(self, model, encodings, targets):
        loss, found_B = self.hidden.loss(*self.answers(model, encodings, targets["token_ids"]))
        return loss, {"accuracy/masked_language": found_B.mean()}
