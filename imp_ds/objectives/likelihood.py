"""The unified objective of Uni-Perceiver (arXiv 2112.01522, section 3; release, `embed_cls_predictor.py`): whatever the task, the
answer is the candidate whose vector is nearest to the query's, by the head that all tasks share.

The candidates of classes and answers are texts that are named, those of hidden words all words of the vocabulary, and the other
half of a pair among the batch of all ranks, in both directions.

Shapes: B samples of this rank, L tokens of a text, D width, C width of the common space, K candidates, N samples of all ranks.
"""

from itertools import chain
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from imp_ds.costs import FLOAT32, STATES, VECTORS, Kernel, Sequences, passes, product
from imp_ds.errors import UserError
from imp_ds.modalities import ModalityName
from imp_ds.modalities.text.masking import most_hidden
from imp_ds.models.imp.conditions import Sides
from imp_ds.models.imp.likelihood import encode_at_mask, encode_with_spe
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel
from imp_ds.objectives.candidates import Candidates, Names, VocabularyTokens
from imp_ds.objectives.contrastive import similarity_values
from imp_ds.objectives.masked_language import MaskedTokens, score_values
from imp_ds.objectives.objective import Answers, ClassObjective, Needs, Objective, ObjectiveRecord, StepShape
from imp_ds.objectives.pair_losses import nce_direction, positives
from imp_ds.objectives.registry import register
from imp_ds.parallel.gather import gather_rows

SPE = ("text", 1)  # the token before a sequence whose state is compared, as a segment
# what the head that compares is made of, and what reads its texts
HEAD_PARAMETERS = ("imp.likelihood.", *(f"imp.{part}.text." for part in ("embeddings", "pre_encoder", "post_encoder")))


def _family(fields: dict) -> str:
    """Tasks whose answers are of one sort share a scale, as in the release: its img_cls, text_mlm, retrieve and so on."""
    candidates, inputs = fields.get("candidates"), fields.get("inputs") or ["text"]
    if candidates == "batch":
        return "retrieval"
    if candidates == "vocabulary":
        return "masked_language"
    return f"{inputs[0]}_classes" if len(inputs) == 1 else "answers"


@register
class Likelihood(ObjectiveRecord):
    """The unified formulation of Uni-Perceiver (arXiv 2112.01522): the answer is the candidate nearest to the query, by one
    head and the encoder for both sides.

    Where the candidates come from decides what is learned: "label_names" or a list, the class or answer that source.label gives;
    "vocabulary", hidden words; "batch", which samples belong together, in both directions.
    """

    kind: Literal["likelihood"] = Field("likelihood", description="which objective this is")
    inputs: list[ModalityName] = Field(min_length=1, description="the query: modalities, as one sequence in this order")
    candidates: Literal["label_names", "vocabulary", "batch"] | list[str | list[str]] = Field(
        "label_names",
        description="the candidates: the class names of the source, these names (a list of names for one class: "
        "each step of training draws one), all words of the vocabulary, or the batch of all ranks",
    )
    templates: list[str] = Field(
        ["{}"], min_length=1, description='texts made of a class name, such as "a photo of a {}."; a step of training draws one'
    )
    answer_at: Literal["start", "mask"] = Field(
        "start",
        description="whose state is compared: that of a token before the sequence, or of the mask in its text, which is [MASK], "
        "or, where a text has none, is put at its end",
    )
    target: ModalityName = Field("text", description="batch: modality of the candidates; texts otherwise")
    positives: Literal["diagonal", "equal"] = Field(
        "diagonal", description='batch: "diagonal": the other half of the same sample; "equal": every sample of equal label'
    )
    rate: float = Field(0.15, gt=0.0, lt=1.0, description="vocabulary: share of the words that are to be found")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="names: share of the answer that all candidates have")
    family: str = Field(
        default_factory=_family, pattern=r"^[a-z][a-z0-9_]*$", description="tasks of one family share a learned temperature"
    )

    @property
    def among_names(self) -> bool:
        """Whether the answer is a class, with texts as candidates."""
        return self.candidates not in ("vocabulary", "batch")

    def candidate_texts(self, names: list[str] | None = None) -> list[list[str]]:
        """The texts of each candidate, [class][name and template]. `names`: those of the source, for "label_names"."""
        listed = names if self.candidates == "label_names" else self.candidates
        several = [[name] if isinstance(name, str) else name for name in listed]
        return [[template.replace("{}", name) for name in of_class for template in self.templates] for of_class in several]

    @model_validator(mode="after")
    def _is_complete(self):
        mistake = None
        if isinstance(self.candidates, list) and (len(self.candidates) < 2 or not all(self.candidates)):
            mistake = "candidates lists at least two names, or lists of names, none of them empty"
        if any("{}" not in template for template in self.templates):
            mistake = "each of templates needs a {} for the class name"
        if len(set(self.inputs)) < len(self.inputs):
            mistake = "a modality stands twice in inputs"
        if self.target != "text" and self.candidates != "batch":
            mistake = f'target = {self.target}, but candidates other than "batch" are texts'
        if self.candidates == "batch" and self.target in self.inputs:
            mistake = f"the target {self.target} is among the inputs, which would give it away"
        if "text" not in self.inputs and (self.candidates == "vocabulary" or self.answer_at == "mask"):
            mistake = 'candidates = "vocabulary" and answer_at = "mask" need text among the inputs'
        if self.candidates == "vocabulary" and self.answer_at == "mask":
            mistake = 'candidates = "vocabulary" compares the hidden words themselves: answer_at = "mask" has no meaning'
        if mistake:
            raise ValueError(f"likelihood: {mistake}")
        return self

    def needs(self):
        used = {*self.inputs, *([self.target] if self.candidates == "batch" else [])}
        return Needs(
            frozenset(used), label=self.among_names or self.positives == "equal",
            classes=len(self.candidates) if isinstance(self.candidates, list) else None,
            mask_rate=self.rate if self.candidates == "vocabulary" else 0.0, mask_at_answer=self.answer_at == "mask",
        )  # fmt: skip

    def sides(self):
        return Sides(frozenset(self.inputs), frozenset([self.target]), candidates=self.candidates != "batch")

    def sequences(self, tokens, batch_size):
        name, first = ("mask", []) if self.answer_at == "mask" else ("spe", [SPE])
        read = [*first, *((modality, tokens[modality]) for modality in self.inputs)]
        found = {"+".join([name, *self.inputs]): Sequences(batch_size, tuple(read))}
        if self.candidates == "batch":
            found[f"target+{self.target}"] = Sequences(batch_size, (SPE, (self.target, tokens[self.target])))
        return found

    def candidate_sequences(self, config, known, class_names, task):
        if self.candidates == "batch":
            return {}
        if self.candidates == "vocabulary":
            return vocabulary_sequences(config)
        if known.get("candidate_ids"):
            lengths = [[len(ids) for ids in texts] for texts in known["candidate_ids"]]
        elif self.candidates == "label_names" and not isinstance(class_names, list):
            raise UserError(
                f"task {task}: the names of its classes are known to the data alone", got="candidates = label_names",
                fix="list them in source.label_names, or in candidates",
            )  # fmt: skip
        else:  # made without a tokenizer: a token is counted for each word of a name
            lengths = [[len(text.split()) for text in texts] for texts in self.candidate_texts(class_names)]
        return {self._set: Sequences(len(lengths), (SPE, ("text", max(map(max, lengths)))), split="ranks")}

    @property
    def _set(self) -> str:
        """Tells the texts among which it looks from others."""
        return "vocabulary" if self.candidates == "vocabulary" else f"names {self.candidates} in {self.templates}"

    def candidate_kernels(self, config, rows, value_bytes):
        return head_kernels(config, rows, value_bytes)

    def kernels(self, shape: StepShape) -> list[Kernel]:
        """The head on what is compared, and the cross-entropy of its cosines with the candidates, in float32."""
        if self.candidates == "batch":
            return comparison_kernels(shape, shape.samples, shape.everyone) * 2
        rows = shape.samples * (most_hidden(shape.lengths["text"], self.rate) if self.candidates == "vocabulary" else 1)
        return comparison_kernels(shape, rows, shape.candidates[self._set])

    def loss_values(self, shape):
        if self.candidates == "batch":
            return 2 * similarity_values(shape)
        return score_values(shape, most_hidden(shape.lengths["text"], self.rate)) if self.candidates == "vocabulary" else 0.0

    def compared_vectors(self):
        return 2 if self.candidates == "batch" else 0

    def parameters(self):
        return HEAD_PARAMETERS

    def describe(self):
        if self.candidates == "vocabulary":
            return f"hidden words, {100 * self.rate:g} %, by likelihood"
        among = self.target if self.candidates == "batch" else f"{len(self.candidates)} names"
        return f"likelihood of {among} by {' and '.join(self.inputs)}"

    def wants_class_names(self):
        return True if self.candidates == "label_names" else None

    def with_class_names(self, names):
        return self.model_copy(update={"candidates": names}) if self.candidates == "label_names" else self

    def texts(self):
        if self.among_names:
            yield from chain(*self.candidate_texts())

    def known(self, tokenizer, task):
        if not self.among_names:
            return {}
        if self.candidates == "label_names":
            raise UserError(
                f"task {task}: the names of its classes have not been read", got="candidates = label_names",
                fix="open the corpus first: imp_ds.data.class_names.with_class_names(run, readers)",
            )  # fmt: skip
        ids = [tokenizer(texts)["input_ids"] for texts in self.candidate_texts()]
        texts = zip(chain(*self.candidate_texts()), chain(*ids))
        empty = [text for text, tokens in texts if not tokens]
        if empty:
            raise UserError(f"task {task}: the text of a candidate has no tokens", got=repr(empty[0]), fix="name the class")
        return {"candidate_ids": ids}

    def answers(self):
        return Answers(list(self.inputs), "candidates") if self.among_names else None

    @property
    def scale_family(self):
        return self.family

    def build(self, config, known):
        if self.candidates == "batch":
            return AmongBatch(self)
        if self.candidates == "vocabulary":
            return AmongTokens(config, self)
        return AmongNames(self, known.get("candidate_ids"))


def vocabulary_sequences(config) -> dict[str, Sequences]:
    """All words as candidates, each a sequence of its own."""
    return {"vocabulary": Sequences(config.vocab_size, (SPE, ("text", 1)), split="ranks")}


def head_kernels(config, rows: int, value_bytes: int) -> list[Kernel]:
    """The likelihood head: `rows` states become unit vectors."""
    width, common = config.hidden_size, config.common_dim
    norms = 5 * rows * (width * value_bytes + common * FLOAT32)
    return [passes("norm", norms, 2, of=STATES), product(rows, width, common, value_bytes)]


def comparison_kernels(shape: StepShape, rows: int, among: int) -> list[Kernel]:
    """The head on `rows` states, and the cross-entropy of their cosines with `among` candidates, in float32."""
    scores = [product(rows, shape.config.common_dim, among, FLOAT32, of=VECTORS), passes("copy", 20 * rows * among * FLOAT32, 8)]
    return head_kernels(shape.config, rows, shape.value_bytes) + scores


class LikelihoodObjective(Objective):
    """What all of them share: the sequence that is read. A subclass has `encode_candidates` and `forward`.

    inputs: the modalities that are read, one sequence in this order; family: whose scale is used; answer_at: "start": the state
    of <SPE> before the sequence is compared; "mask": that of the mask token in its text.
    """

    def __init__(self, inputs: list[str], family: str, answer_at: str = "start"):
        super().__init__()
        self.inputs, self.family, self.answer_at = list(inputs), family, answer_at
        self.sequence = ("spe+" if answer_at == "start" else "mask+") + "+".join(inputs)

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        if self.sequence not in encodings:
            encode = encode_with_spe if self.answer_at == "start" else encode_at_mask
            encodings[self.sequence] = encode(model, segments(model, batch, self.inputs), batch.key_B)
        self.encode_candidates(model, batch, encodings)

    def encode_candidates(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        """Add the encodings of the candidates."""
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


class AmongNames(AmongTexts, ClassObjective):
    """The class of targets["label"], int64 [B], among named texts. `candidate_ids`: their tokens, [candidate][text][token]."""

    def __init__(self, record: Likelihood, candidate_ids: list | None = None):
        super().__init__(record.inputs, record.family, record.answer_at)
        self.candidates, self.label_smoothing = Names(candidate_ids) if candidate_ids else None, record.label_smoothing
        named = record.candidates if isinstance(record.candidates, list) else []
        self.class_names = [name if isinstance(name, str) else name[0] for name in named]

    def logits(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        """Of each sample and candidate, float32 [B, K]."""
        vectors_BC = model.likelihood(encodings[self.sequence].pooled_BD)
        return model.likelihood.logits(vectors_BC, self.vectors(model, encodings), self.family)

    def probabilities(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        return self.logits(model, encodings).softmax(1)

    def forward(self, model, encodings, targets):
        logits_BK, label_B = self.logits(model, encodings), targets["label"]
        loss = F.cross_entropy(logits_BK, label_B, label_smoothing=self.label_smoothing)
        return loss, self.found(model, logits_BK.detach().argmax(1) == label_B)


class AmongTokens(AmongTexts):
    """The masked tokens of targets["token_ids"], int64 [B, L], among all tokens, as `MaskedTokens` has it."""

    def __init__(self, config, record: Likelihood):
        super().__init__(record.inputs, record.family, record.answer_at)
        self.candidates = VocabularyTokens(config.vocab_size)
        self.hidden = MaskedTokens(record.rate)

    def resize_tokens(self, count: int) -> None:
        self.candidates.resize(count)

    def answers(self, model: ImpModel, encodings: dict[str, Encoding], labels_BL: torch.Tensor):
        """As `MaskedTokens.answers`."""
        encoding = encodings[self.sequence]
        parts = encoding.tokens_BLD.split(encoding.lengths, dim=1)
        tokens_BLD = parts[self.inputs.index("text") + (self.answer_at == "start")]
        vectors_KC = self.vectors(model, encodings)
        score = lambda states_ND: model.likelihood.logits(model.likelihood(states_ND), vectors_KC, self.family)  # noqa: E731
        return self.hidden.answers(score, tokens_BLD, labels_BL)

    def forward(self, model, encodings, targets):
        loss, right_B = self.hidden.loss(*self.answers(model, encodings, targets["token_ids"]))
        return loss, self.found(model, right_B)


class AmongBatch(LikelihoodObjective):
    """The sample's own `target` among those of all ranks, and each query among all queries, as in
    `imp_ds.objectives.contrastive`. `positives`: "diagonal", or "equal": whatever has an equal targets["label"]."""

    compares_samples = True

    def __init__(self, record: Likelihood):
        super().__init__(record.inputs, record.family, record.answer_at)
        self.target, self.positives = f"target+{record.target}", record.positives

    def encode_candidates(self, model, batch, encodings):
        if self.target not in encodings:
            parts = segments(model, batch, [self.target.removeprefix("target+")], target=True)
            encodings[self.target] = encode_with_spe(model, parts, batch.key_B)

    def forward(self, model, encodings, targets):
        query_BC, candidate_BC = (model.likelihood(encodings[name].pooled_BD) for name in (self.sequence, self.target))
        positive_BN = positives(self.positives, len(query_BC), query_BC.device, targets)
        forth, forth_accuracy = nce_direction(self._logits(model, query_BC, candidate_BC), positive_BN)
        back, back_accuracy = nce_direction(self._logits(model, candidate_BC, query_BC), positive_BN)
        metrics = self.found(model, torch.stack([forth_accuracy, back_accuracy]))
        return (forth + back) / 2, metrics

    def _logits(self, model: ImpModel, query_BC: torch.Tensor, own_BC: torch.Tensor) -> torch.Tensor:
        return model.likelihood.logits(query_BC, gather_rows(own_BC), self.family)
