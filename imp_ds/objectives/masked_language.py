"""Masked language modelling: the hidden words of a text are found from the rest of it (BERT, arXiv 1810.04805, section 3.1).

The loss is the mean over a text's hidden tokens, then over the texts. In BERT and Uni-Perceiver every text is full, so all have
equally many hidden tokens and this is their mean over all of them; where lengths differ, each text counts the same, as it does
in the other objectives. The mean over a rank's texts is so its share of the global mean without any exchange, and that over
the texts of a piece is the piece's share of the batch.

Shapes: B texts of this rank, L tokens of a text, K tokens of a text that are computed, N = B * K, D width, V words of the
vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from imp_ds.modalities.masking import IGNORED, most_hidden


class WordHead(nn.Module):
    """From a token's state to a score for every word (BERT's release, `run_pretraining.py`): dense, GELU, norm, and the product
    with the words' own vectors, those of the encoder's embedding, and a bias. forward: (model, states [N, D]) -> [N, V]."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def initialize_parameters(self) -> None:
        init.zeros_(self.bias)

    def forward(self, model, states_ND: torch.Tensor) -> torch.Tensor:
        hidden_ND = self.norm(F.gelu(self.dense(states_ND), approximate="tanh"))
        return model.score_words(hidden_ND) + self.bias


class MaskedLanguageObjective(nn.Module):
    """Cross-entropy of the hidden words. forward: (model, encodings by modality, targets) -> (loss, metrics).

    targets["words"] is int64 [B, L]: the tokens to be found, -100 elsewhere. Of each text `most_hidden(L, rate)` tokens are
    computed, the hidden ones first: a fixed number, for which no host waits, and seldom more than a third of them. Texts
    without a hidden token cost nothing and count as one without a hit.
    """

    compares_samples = False

    def __init__(self, config, rate: float):
        super().__init__()
        self.rate = rate
        self.head = WordHead(config)

    def forward(self, model, encodings: dict, targets: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss_BK, found_BK, hidden_BK = self.answers(model, encodings["text"].tokens_BLD, targets["words"])
        count_B = hidden_BK.sum(1).clamp(min=1)
        loss = (loss_BK.sum(1) / count_B).mean()
        return loss, {"accuracy/masked_language": (found_BK.sum(1) / count_B).mean()}

    def answers(self, model, tokens_BLD: torch.Tensor, words_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each computed token, [B, K]: its cross-entropy (float32), whether its best word is the right one, and whether it
        was hidden at all; both others are 0 and False where it was not."""
        hidden_first_BL = (words_BL == IGNORED).to(torch.int8).argsort(dim=1, stable=True)
        index_BK = hidden_first_BL[:, : most_hidden(words_BL.shape[1], self.rate)]
        word_BK = words_BL.gather(1, index_BK)
        states_BKD = tokens_BLD.take_along_dim(index_BK[..., None], dim=1)
        scores_NV = self.head(model, states_BKD.flatten(0, 1)).float()
        loss_N = F.cross_entropy(scores_NV, word_BK.flatten(), ignore_index=IGNORED, reduction="none")
        best_N = scores_NV.detach().argmax(1)
        return loss_N.view_as(word_BK), best_N.view_as(word_BK) == word_BK, word_BK != IGNORED
