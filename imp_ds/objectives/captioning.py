"""Captioning: the next token of a caption is found among all tokens of the vocabulary, by the head that all tasks share
(Uni-Perceiver, arXiv 2112.01522; release, `image_text_pair.py` and `embed_cls_predictor.py`).

Training finds all words in one pass (`imp_ds.models.imp.generation.caption_sequence`), the end of the text among them. The loss
is the mean over a text's words, then over the texts, as in `imp_ds.objectives.masked_language`. Generation finds them one after
another.

Shapes: B samples of this rank, K captions of a sample, T words of a caption, L words so far, C width of the common space, V words
of the vocabulary.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field

from imp_ds.costs import Kernel, Sequences
from imp_ds.modalities.modality import ModalityBesideText
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.models.imp.conditions import Sides, segment_attributes
from imp_ds.models.imp.generation.beam_search import beam_search
from imp_ds.models.imp.generation.caption_sequence import ConditioningPrefix, encode_captions, query_states
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel
from imp_ds.objectives.candidates import VocabularyTokens
from imp_ds.objectives.likelihood import (
    HEAD_PARAMETERS,
    SPE,
    AmongTexts,
    comparison_kernels,
    head_kernels,
    vocabulary_sequences,
)  # fmt: skip
from imp_ds.objectives.masked_language import score_values
from imp_ds.objectives.objective import Needs, ObjectiveRecord, StepShape
from imp_ds.objectives.registry import register


@register
class Captioning(ObjectiveRecord):
    """Captions that are generated token by token, each found among the whole vocabulary by the likelihood head (Uni-Perceiver).
    The text view's length is the longest caption in tokens, its end with them."""

    kind: Literal["captioning"] = Field("captioning", description="which objective this is")
    modality: ModalityBesideText = Field(description="what the captions are generated from")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share of each word that all words have")
    family: str = Field("caption", pattern=r"^[a-z][a-z0-9_]*$", description="tasks of one family share a learned temperature")

    def needs(self):
        return Needs(frozenset([self.modality, "text"]), target_ids=True)

    def sides(self):
        text = frozenset(["text"])
        return Sides(frozenset([self.modality, "text"]), text, causal=text, candidates=True)

    def sequences(self, tokens, batch_size):
        words = ("text", tokens["text"])  # the caption, and a query for each of its tokens
        segments = (SPE, (self.modality, tokens[self.modality]), words, words)
        return {f"caption+{self.modality}": Sequences(batch_size, segments)}

    def candidate_sequences(self, config, known, class_names, task):
        return vocabulary_sequences(config)

    def candidate_kernels(self, config, rows, value_bytes):
        return head_kernels(config, rows, value_bytes)

    def kernels(self, shape: StepShape) -> list[Kernel]:
        """The head on every token's query, and the cross-entropy of its cosines with all tokens, in float32."""
        return comparison_kernels(shape, shape.samples * shape.lengths["text"], shape.candidates["vocabulary"])

    def loss_values(self, shape):
        return score_values(shape, shape.lengths["text"])

    def parameters(self):
        return HEAD_PARAMETERS

    def describe(self):
        return f"captions of {self.modality}"

    @property
    def scale_family(self):
        return self.family

    def build(self, config, known):
        return CaptioningObjective(config, self)


class CaptioningObjective(AmongTexts):
    """Cross-entropy of the target ids of targets["caption"], int64 [B, T]: the ids of a caption and its end, -100 after it."""

    def __init__(self, config, record: Captioning):
        super().__init__([record.modality], record.family)
        self.modality, self.label_smoothing = record.modality, record.label_smoothing
        self.sequence = f"caption+{record.modality}"
        self.candidates = VocabularyTokens(config.vocab_size)

    def resize_tokens(self, count: int) -> None:
        self.candidates.resize(count)

    def encode(self, model, batch, encodings):
        if self.sequence not in encodings:
            prefix = self.conditioning_prefix(model, batch.task, self.modality, batch.inputs[self.modality])
            encodings[self.sequence] = self.encode_targets(model, prefix, batch.targets["caption"], batch.key_B)
        self.encode_candidates(model, batch, encodings)

    def forward(self, model, encodings, targets):
        target_BT = targets["caption"]
        log_p_BTV = self.log_probabilities(model, query_states(encodings[self.sequence])[:, 0], self.vectors(model, encodings))
        loss_BT = -target_log_probabilities(log_p_BTV, target_BT)
        if self.label_smoothing:
            evenly_BT = -log_p_BTV.mean(2) * (target_BT != IGNORED)
            loss_BT = (1 - self.label_smoothing) * loss_BT + self.label_smoothing * evenly_BT
        count_B = (target_BT != IGNORED).sum(1).clamp(min=1)
        right_BT = log_p_BTV.detach().argmax(2) == target_BT
        return (loss_BT.sum(1) / count_B).mean(), self.found(model, right_BT.sum(1) / count_B)

    def conditioning_prefix(
        self, model: ImpModel, task: str, modality: str, inputs: dict[str, torch.Tensor]
    ) -> ConditioningPrefix:
        """What captions are generated from, under the conditions of `task`, whose objective this is; for another modality than
        its own, attribute gates get those attributes that such a task would have."""
        attributes = [None, None]
        if modality != self.modality:
            sides = Captioning(modality=modality).sides()
            attributes = [segment_attributes(of, sides) for of in (modality, "text")]
        conditions = [
            model.condition(of, task, target=False, attributes=known) for of, known in zip((modality, "text"), attributes)
        ]
        return ConditioningPrefix(modality, inputs, *conditions)

    def encode_targets(
        self, model: ImpModel, prefix: ConditioningPrefix, target_BT: torch.Tensor, key_B: torch.Tensor | None = None
    ) -> Encoding:
        """Captions, as targets["caption"] has them, with a query for each token."""
        valid_BT = target_BT != IGNORED
        ids_BT = target_BT.where(valid_BT, model.config.pad_token_id)
        token_positions = range(target_BT.shape[1])
        return encode_captions(model, prefix, ids_BT.unsqueeze(1), token_positions, valid_BT.unsqueeze(1), key_B)

    def log_probabilities(self, model: ImpModel, states: torch.Tensor, vectors_VC: torch.Tensor) -> torch.Tensor:
        """Of each token at each query, float32 [..., V], from the queries' states, [..., D]."""
        logits_NV = model.likelihood.logits(model.likelihood(states.flatten(0, -2)), vectors_VC, self.family)
        return logits_NV.log_softmax(1).unflatten(0, states.shape[:-1])

    def generate(
        self, model: ImpModel, prefix: ConditioningPrefix, vectors_VC: torch.Tensor, *, size: int, longest: int,
        length_penalty: float = 1.0,
        agree: Callable[[bool], bool] = bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The best caption of each sample that a beam of `size` finds, int64 [B, L], L <= longest, its end with it and filled up
        with ends, and its score, float32 [B]. Arguments and errors as those of `beam_search`."""

        def next_tokens(ids_BKL: torch.Tensor) -> torch.Tensor:
            position, captions = ids_BKL.shape[2], ids_BKL.shape[1]
            encoding = encode_captions(model, prefix, ids_BKL, range(position, position + 1))
            return self.log_probabilities(model, query_states(encoding, captions)[:, :, 0], vectors_VC)

        batch = len(next(iter(prefix.inputs.values())))
        return beam_search(
            next_tokens, batch, size=size, longest=longest, end_id=model.config.end_token_id, length_penalty=length_penalty,
            device=vectors_VC.device, agree=agree,
        )  # fmt: skip


def target_log_probabilities(log_p_BTV: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
    """Those of the target ids, float32 [B, T]; 0 where there is none."""
    valid_BT = target_BT != IGNORED
    chosen_BT = log_p_BTV.gather(2, target_BT.where(valid_BT, 0).unsqueeze(2)).squeeze(2)
    return chosen_BT.where(valid_BT, 0.0)
