"""Sets of candidate texts: class names, answers, or every token of the vocabulary.

The network that reads the question encodes the candidates too, in every step. A set is shared out: of N candidates each of R
ranks encodes ceil(N / R), and their vectors are gathered with gradient, so that a step costs each rank its share alone. What
fills up the last rank's share is padding: nobody sees it, no expert takes it, and its vectors are cut off.

Shapes: N candidates, n of this rank, A texts of a candidate, L tokens of a text, D width, C width of the common space.
"""

import zlib
from dataclasses import replace

import torch

from imp_ds.models.imp.likelihood import encode_with_spe
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel
from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import rank, world_size
from imp_ds.randomness import additional_keys, derive, step_key, uniform

_CANDIDATE_KEYS, _TEXT_KEY = 16, 17  # what random keys are for


class Candidates:
    """`count` candidates, each a text; `texts(index_n, key_1)` gives the tokens of some of them.

    name: of the set among a batch's encodings: another objective with the same set finds it encoded.
    """

    name: str
    count: int

    def texts(self, index_n: torch.Tensor, key_1: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask (bool), [n, L], of the candidates of these numbers. key_1: of the step, where one of several texts is to
        be drawn."""
        raise NotImplementedError

    def encode(self, model: ImpModel, task: str, key_B: torch.Tensor | None = None) -> Encoding:
        """This rank's share of the set, in the condition that candidates of `task` have; `pooled_BD` are the states of <SPE>.

        All ranks call it. key_B: the samples' random keys, from which those of the step follow; they are not used outside of
        training.
        """
        index_n, real_n = share_of(self.count, model.device)
        keys_n = None
        if key_B is not None and model.training:
            keys_n = additional_keys(key_B, _CANDIDATE_KEYS, rank() * len(index_n), len(index_n))
        key_1 = None if keys_n is None else derive(step_key(key_B), _TEXT_KEY)
        ids_nL, mask_nL = self.texts(index_n, key_1)
        inputs = {"input_ids": ids_nL, "attention_mask": mask_nL & real_n[:, None]}
        part = ("text", inputs, model.condition("text", task, target=True))
        encoding = encode_with_spe(model, [part], keys_n, real_n)
        # a router's losses are means over the groups of this rank, of which those of padding are zeros
        full = len(index_n) * world_size() / self.count
        reports = [r._replace(z_loss=r.z_loss * full, balance_loss=r.balance_loss * full) for r in encoding.reports]
        return replace(encoding, reports=reports)

    def vectors(self, model: ImpModel, encoding: Encoding) -> torch.Tensor:
        """The unit vectors of the whole set, float32 [N, C], on every rank, from its share of the encodings."""
        return gather_rows(model.likelihood(encoding.pooled_BD))[: self.count]


class VocabularyTokens(Candidates):
    """Every token of the vocabulary, each as a text of its own."""

    name = "vocabulary"

    def __init__(self, vocab_size: int):
        self.count = vocab_size

    def resize(self, count: int) -> None:
        """Follow a vocabulary that now has `count` words."""
        self.count = count

    def texts(self, index_n, key_1):
        return index_n[:, None], torch.ones_like(index_n[:, None], dtype=torch.bool)


class Names(Candidates):
    """Texts from a list: of each candidate one or several, of which a step of training draws one, the same on all ranks.

    ids: tokens, [candidate][text][token]. Outside of training a candidate's first text stands for it.
    """

    def __init__(self, ids: list[list[list[int]]]):
        self.count = len(ids)
        self.name = f"names_{zlib.crc32(repr(ids).encode()):08x}"
        self._ids = ids
        self._tables: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def texts(self, index_n, key_1):
        ids_NAL, length_NA, texts_N = self._table(index_n.device)
        which_n = torch.zeros_like(index_n)
        if key_1 is not None:
            which_n = (uniform(key_1, self.count)[0] * texts_N).long()[index_n]
        ids_nL, length_n = ids_NAL[index_n, which_n], length_NA[index_n, which_n]
        return ids_nL, torch.arange(ids_nL.shape[1], device=index_n.device) < length_n[:, None]

    def _table(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """ids [N, A, L], padded with zeros, how many of them are tokens [N, A], and how many texts each candidate has [N]."""
        if device not in self._tables:
            most, longest = max(map(len, self._ids)), max(len(text) for texts in self._ids for text in texts)
            filled = [[text + [0] * (longest - len(text)) for text in texts] for texts in self._ids]
            rows = [texts + [[0] * longest] * (most - len(texts)) for texts in filled]
            lengths = [[*map(len, texts)] + [0] * (most - len(texts)) for texts in self._ids]
            self._tables[device] = tuple(torch.tensor(x, device=device) for x in (rows, lengths, [*map(len, self._ids)]))
        return self._tables[device]


def share_of(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the candidates that this rank encodes, int64 [n], and which of them are not there to fill up, bool [n]."""
    each = -(-count // world_size())
    index_n = torch.arange(rank() * each, (rank() + 1) * each, device=device)
    return index_n.clamp(max=count - 1), index_n < count
