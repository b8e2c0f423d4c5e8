"""The unified objective of Uni-Perceiver (arXiv 2112.01522, section 3; release, `embed_cls_predictor.py`): whatever the task, the
answer is the candidate whose vector is nearest to that of what is read, by the head that all tasks share.

Classes and answers are looked for among texts that are named, hidden words among all words of the vocabulary, and the other
half of a pair among the batch of all ranks, in both directions.

Shapes: B samples of this rank, L tokens of a text, D width, C width of the common space, K candidates, N samples of all ranks.
"""

import torch
import torch.nn.functional as F

from imp_ds.errors import UserError
from imp_ds.models.imp.likelihood import encode_at_mark, encode_with_spe
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel
from imp_ds.objectives.candidates import Candidates, Names, Words
from imp_ds.objectives.contrastive import nce_direction, positives
from imp_ds.objectives.masked_language import HiddenWords
from imp_ds.objectives.objective import Objective
from imp_ds.parallel.gather import gather_rows


def build_likelihood(config, candidates: str | list = "label_names", **arguments) -> "LikelihoodObjective":
    """The objective of a spec of kind "likelihood" (`imp_ds.tasks.Likelihood`), by where it looks for the answer."""
    return {"batch": AmongBatch, "vocabulary": AmongWords}.get(str(candidates), AmongNames)(config, **arguments)


class LikelihoodObjective(Objective):
    """What all of them share: the sequence that is read. A subclass has `encode_candidates` and `forward`.

    Args, as in `imp_ds.tasks.Likelihood`:
        inputs: the modalities that are read, one sequence in this order.
        family: whose scale is used.
        answer_at: "start": the state of <SPE> before the sequence is compared; "mark": that of the mask token in its text.
    """

    def __init__(self, config, inputs: list[str], family: str, answer_at: str = "start", **_):
        super().__init__()
        self.inputs, self.family, self.answer_at = list(inputs), family, answer_at
        self.sequence = ("spe+" if answer_at == "start" else "mark+") + "+".join(inputs)

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        if self.sequence not in encodings:
            encode = encode_with_spe if self.answer_at == "start" else encode_at_mark
            encodings[self.sequence] = encode(model, segments(model, batch, self.inputs), batch.key_B)
        self.encode_candidates(model, batch, encodings)

    def encode_candidates(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        """Add the encodings of what is looked for."""
        raise NotImplementedError

    def found(self, model: ImpModel, right_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """The metrics: the share that was answered rightly, and the family's scale."""
        scale = model.likelihood.scale(self.family).detach().squeeze(0)
        return {f"accuracy/{self.family}": right_B.float().mean(), f"scale/{self.family}": scale}


def segments(model: ImpModel, batch, modalities: list[str], target: bool | None = None) -> list[tuple]:
    """The parts of a sequence of these modalities of a batch, with their conditions, for `ImpModel.encode_segments`."""
    return [(m, batch.inputs[m], model.condition(m, batch.task, target=target)) for m in modalities]


class AmongTexts(LikelihoodObjective):
    """Looks among `candidates`, a set of texts that all ranks share."""

    candidates: Candidates | None

    def encode_candidates(self, model, batch, encodings):
        if self.candidates is None:
            raise UserError(
                f"task {batch.task}: the model does not know the texts of its candidates", got="no candidate_ids",
                fix="make its configuration with the tokenizer: ModelSettings.to_config(..., tokenizer)",
            )  # fmt: skip
        if self.candidates.name not in encodings:
            encodings[self.candidates.name] = self.candidates.encode(model, batch.task, batch.key_B)

    def vectors(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        """The unit vectors of all candidates, float32 [K, C]."""
        return self.candidates.vectors(model, encodings[self.candidates.name])


class AmongNames(AmongTexts):
    """The class of targets["label"], int64 [B], among named texts. `candidate_ids`: their tokens, [candidate][text][token]."""

    def __init__(self, config, candidate_ids: list | None = None, label_smoothing: float = 0.0, **arguments):
        super().__init__(config, **arguments)
        self.candidates, self.label_smoothing = Names(candidate_ids) if candidate_ids else None, label_smoothing

    def logits(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        """Of each sample and candidate, float32 [B, K]."""
        vectors_BC = model.likelihood(encodings[self.sequence].pooled_BD)
        return model.likelihood.logits(vectors_BC, self.vectors(model, encodings), self.family)

    def forward(self, model, encodings, targets):
        logits_BK, label_B = self.logits(model, encodings), targets["label"]
        loss = F.cross_entropy(logits_BK, label_B, label_smoothing=self.label_smoothing)
        return loss, self.found(model, logits_BK.detach().argmax(1) == label_B)


class AmongWords(AmongTexts):
    """The hidden words of targets["words"], int64 [B, L], among all words, as `HiddenWords` has it."""

    def __init__(self, config, rate: float, **arguments):
        super().__init__(config, **arguments)
        self.candidates = Words(config.vocab_size)
        self.hidden = HiddenWords(rate)

    def resize_words(self, count: int) -> None:
        self.candidates.resize(count)

    def answers(self, model: ImpModel, encodings: dict[str, Encoding], words_BL: torch.Tensor):
        """As `HiddenWords.answers`."""
        encoding = encodings[self.sequence]
        parts = encoding.tokens_BLD.split(encoding.lengths, dim=1)
        tokens_BLD = parts[self.inputs.index("text") + (self.answer_at == "start")]
        vectors_KC = self.vectors(model, encodings)
        score = lambda states_ND: model.likelihood.logits(model.likelihood(states_ND), vectors_KC, self.family)  # noqa: E731
        return self.hidden.answers(score, tokens_BLD, words_BL)

    def forward(self, model, encodings, targets):
        loss, right_B = self.hidden.loss(*self.answers(model, encodings, targets["words"]))
        return loss, self.found(model, right_B)


class AmongBatch(LikelihoodObjective):
    """The sample's own `target` among those of all ranks, and what is read among all that is, as in
    `imp_ds.objectives.contrastive`. `positives`: "diagonal", or "equal": whatever has an equal targets["label"]."""

    compares_samples = True

    def __init__(self, config, target: str = "text", positives: str = "diagonal", **arguments):
        super().__init__(config, **arguments)
        self.target, self.positives = f"target+{target}", positives

    def encode_candidates(self, model, batch, encodings):
        if self.target not in encodings:
            parts = segments(model, batch, [self.target.removeprefix("target+")], target=True)
            encodings[self.target] = encode_with_spe(model, parts, batch.key_B)

    def forward(self, model, encodings, targets):
        read_BC, sought_BC = (model.likelihood(encodings[name].pooled_BD) for name in (self.sequence, self.target))
        positive_BN = positives(self.positives, len(read_BC), read_BC.device, targets)
        forth, forth_accuracy = nce_direction(self._logits(model, read_BC, sought_BC), positive_BN)
        back, back_accuracy = nce_direction(self._logits(model, sought_BC, read_BC), positive_BN)
        metrics = self.found(model, torch.stack([forth_accuracy, back_accuracy]))
        return (forth + back) / 2, metrics

    def _logits(self, model: ImpModel, query_BC: torch.Tensor, own_BC: torch.Tensor) -> torch.Tensor:
        return model.likelihood.logits(query_BC, gather_rows(own_BC), self.family)
