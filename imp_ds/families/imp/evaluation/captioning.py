"""How good a model's captions of a split are: what it generates, and how well it predicts the tokens of those that it is given.

Shapes: B entries of a batch, R entries of all batches and ranks, L words of the longest caption of a batch, T words of a caption,
V words of the vocabulary, D width, C width of the common space.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F

from imp_ds.errors import UserError
from imp_ds.evaluation.captions import bleu4, cider
from imp_ds.evaluation.embedding import in_step
from imp_ds.evaluation.evaluator import Evaluator, register_evaluator
from imp_ds.evaluation.metric import Metric, Shown
from imp_ds.evaluation.split import CACHE_MB, CachedBatches, Split, used_views
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.modalities.text.tokens import preprocess_captions
from imp_ds.models.imp.generation.caption_sequence import ConditioningPrefix, query_states
from imp_ds.objectives.captioning import target_log_probabilities
from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import all_agree
from imp_ds.tasks import Batch, Task


@register_evaluator
class CaptioningEvaluator(Evaluator):
    """`run(model)` yields

    captioning/{name}/bleu4 and /cider, of the captions that a beam search finds, against all captions of their rows;
    captioning/{name}/accuracy: of the words of each row's first caption, the end with them, the share that is most probable after
    the words before it; captioning/{name}/perplexity: exp of their mean cross-entropy.

    Args:
        record: the evaluation; its text view's length is the longest that is generated.
        task: the record's `captioner`, whose conditions and scale are used; its captions may be of another modality.
        batches: returns this rank's batches of the split anew (`imp_ds.data.loading.evaluation_batches`).
        references: the captions of each row.
        tokenizer: of the model.
        cache_mb: batches are cached for the next run while they take at most this much.

    A row that cannot be used or has no caption is left out, and counted as left_out/{name} where there are any. Of a row with
    several entries (the windows of a long recording) the caption that scores best is taken, and the words of each are counted.

    After a run, `generated` holds (row, caption) of all rows that were measured. Raises UserError for a record without views or
    captions, and a task that generates none.
    """

    kind = "captioning"
    family = "imp"
    reads_heads = True

    def __init__(
        self, record: Evaluation, task: Task, batches: Callable[[], Iterable[Batch]], references: list[list[str]], tokenizer, *,
        cache_mb: int = CACHE_MB,
    ):  # fmt: skip
        _check(record, task, references)
        self.record, self.task, self.references, self.tokenizer = record, task, references, tokenizer
        self._batches = CachedBatches(lambda: map(self._with_caption, batches()), cache_mb)
        self.generated: list[tuple[int, str]] = []
        self._first: Batch | None = None

    @classmethod
    def serves(cls, run, record: Evaluation) -> bool:
        return record.captioner is not None

    @classmethod
    def build(cls, split: Split, record: Evaluation) -> "CaptioningEvaluator":
        batches, references = split.batches(record.source, used_views(record), record.name), split.captions(record.source)
        return cls(record, split.run.task(record.captioner), batches, references, split.processor.tokenizer)

    def run(self, model: ImpForPreTraining) -> Iterator[Metric]:
        """All ranks call this together, and get the same values. Raises UserError, on all ranks, for a caption without tokens."""
        name, (task, objective) = self.record.name, model.captioner(self.task.name)
        # the words are encoded once for all batches
        vectors_VC = objective.candidates.vectors(model.imp, objective.candidates.encode(model.imp, task))
        found = []
        for batch in in_step(iter(self._batches)):
            self._first = self._first or batch
            batch = batch.to(vectors_VC.device)
            prefix = objective.conditioning_prefix(model.imp, task, self.record.modality, batch.inputs[self.record.modality])
            ids_BT, score_B = self._generate(model, objective, prefix, vectors_VC)
            counted_B3 = _counted(model, objective, prefix, vectors_VC, batch.targets["caption"])
            found.append((batch.targets["valid"], batch.targets["index"], ids_BT, score_B, counted_B3))
        valid_R, *columns = (gather_rows(torch.cat(column)) for column in zip(*found))
        index_R, ids_RT, score_R, counted_R3 = (column[valid_R] for column in columns)
        self.generated = self._best(index_R, ids_RT, score_R)
        if len(self.generated) < len(self.references):
            yield Metric(f"left_out/{name}", float(len(self.references) - len(self.generated)), "count")
        candidates, references = [text for _, text in self.generated], [self.references[row] for row, _ in self.generated]
        shown = Shown("captions", "BLEU-4 "), Shown("captions", "CIDEr ")
        yield Metric(f"captioning/{name}/bleu4", bleu4(candidates, references), "share", "higher", shown[0])
        yield Metric(f"captioning/{name}/cider", cider(candidates, references), "", "higher", shown[1])
        words, right, loss = counted_R3.sum(0)
        yield Metric(f"captioning/{name}/accuracy", (right / words).item(), "share", "higher")
        yield Metric(f"captioning/{name}/perplexity", (loss / words).exp().item(), "", "lower")

    def examples(self, count: int) -> tuple[Batch, list[tuple[str, str]]]:
        """After a run, of the first `count` entries of this rank their inputs, and the generated caption beside the first of
        those that it was to be."""
        first, generated = self._first.map(lambda x: x[:count]), dict(self.generated)
        return first, [(generated.get(row, ""), self.references[row][0]) for row in first.targets["index"].tolist()]

    def _with_caption(self, batch: Batch) -> Batch:
        captions = [self.references[row][0] for row in batch.targets["index"].tolist()]
        target_BT = preprocess_captions(captions, self.tokenizer, self.record.views.text.length)
        batch.targets["caption"] = torch.from_numpy(target_BT)
        return batch

    def _generate(
        self, model, objective, prefix: ConditioningPrefix, vectors_VC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The captions that are found, filled up with ends to one length, [B, T], and their scores, [B]."""
        longest = self.record.views.text.length
        ids_BL, score_B = objective.generate(
            model.imp, prefix, vectors_VC, size=self.record.beam, longest=longest, length_penalty=self.record.length_penalty,
            agree=all_agree,
        )  # fmt: skip
        return F.pad(ids_BL, (0, longest - ids_BL.shape[1]), value=model.config.end_token_id), score_B

    def _best(self, index_R: torch.Tensor, ids_RT: torch.Tensor, score_R: torch.Tensor) -> list[tuple[int, str]]:
        """(row, caption) of each row, in order, of its entry that scores best."""
        by_score = sorted(zip(score_R.tolist(), index_R.tolist(), ids_RT.tolist()), key=lambda entry: entry[0])
        best = {row: ids for _, row, ids in by_score}
        return [(row, self.tokenizer.decode(best[row], skip_special_tokens=True).strip()) for row in sorted(best)]


def _counted(model, objective, prefix: ConditioningPrefix, vectors_VC: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
    """Of each caption how many words it has, how many of them are the most probable ones, and the sum of their cross-entropies,
    float64 [B, 3]."""
    states_BTD = query_states(objective.encode_targets(model.imp, prefix, target_BT))[:, 0]
    log_p_BTV = objective.log_probabilities(model.imp, states_BTD, vectors_VC)
    columns = target_BT != IGNORED, log_p_BTV.argmax(2) == target_BT, -target_log_probabilities(log_p_BTV, target_BT)
    return torch.stack([column.double().sum(1) for column in columns], dim=1)


def _check(record: Evaluation, task: Task, references: list[list[str]]) -> None:
    where = f"evaluation {record.name}"
    if record.modality == "text":
        raise UserError(f"{where}: captions are generated from pictures and audio", got="modality text", allowed="another")
    if record.views.text is None or getattr(record.views, record.modality) is None:
        needed = f"views.{record.modality} and views.text"
        raise UserError(f"{where} lacks a view", got=", ".join(record.views.names()) or "none", allowed=needed)
    if not task.needs.target_ids:
        raise UserError(
            f"{where}: task {task.name} generates no captions", got=", ".join(objective.kind for objective in task.objectives),
            allowed="an objective of kind captioning", fix=f"--set evaluations.{record.name}.captioner=TASK, one that has it",
        )  # fmt: skip
    if not any(references):
        raise UserError(f"{where} measures nothing", got="no caption to compare with", fix="set source.text")
