"""One evaluation of a modality against text, or another one: zero-shot classification and retrieval from one pass over the split.

Shapes: N rows of the split, C width of a common space, T frames, H height, W width.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain

import numpy as np
import torch
from PIL import Image

from imp_ds.errors import UserError
from imp_ds.evaluation.answers import exact_match
from imp_ds.evaluation.embedding import Embedded, embed_by, prompt_batches
from imp_ds.evaluation.evaluator import Evaluator, Projection, register_evaluator
from imp_ds.evaluation.metric import ACCURACY, Metric, Shown
from imp_ds.evaluation.retrieval import all_captions, both_directions
from imp_ds.evaluation.split import CACHE_MB, CachedBatches, Split, class_prompts, used_views
from imp_ds.evaluation.zero_shot import ClassPrompts, accuracy, class_vectors, mean_class_recall
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.evaluation.sides import both, build_sides
from imp_ds.modalities.modality import TextNeeds
from imp_ds.modalities.sides import JOINED
from imp_ds.modalities.text.tokens import has_tokens
from imp_ds.models.imp.features import first_values
from imp_ds.parallel.groups import rank, world_size
from imp_ds.tasks import Batch


@register_evaluator
class TextEvaluator(Evaluator):
    """How well a modality meets text. `run(model)` yields

    zero_shot/{name}/top1, top5 when there are more than 5 classes, and the mean of the classes' own top 1, if `classes` is given;
    answers/{name}/exact_match besides, where the classes are answers that are read at a mask;
    retrieval/{name}/{name}_to_text/R@1, R@5, R@10 and text_to_{name}/..., if `captions` is given; of another target its name;
    the same by the first values alone of a pair's vectors, as many as config.matryoshka has: zero_shot/{name}/first_64/top1, ....

    Args:
        record: the evaluation's name, modality and views.
        batches: returns this rank's batches of the split anew (`imp_ds.data.loading.evaluation_batches`).
        tokenizer: makes the prompts' tokens.
        labels: class index of each row of the split, int64 [rows]; needed with `classes`.
        captions: the captions of each row, by which rows are equal; the batches then have inputs of the target, made of the
            first, but where `record.captions` is "all".
        frames: returns the frames of a row, uint8 [T, H, W, 3]; for thumbnails, where the modality is seen.
        cache_mb: batches are kept for the next run while they take at most this much, since a split is read many times.

    A row that cannot be used is left out, and counted as left_out/{name} where there are any.

    After a run, `vectors_NC` holds the modality's unit vectors, `rows_N` the rows that they belong to, and `usage` the experts'
    shares by modality.
    Raises UserError when there is nothing to measure or a label has no class.
    """

    kind = "similarity"
    family = "imp"

    def __init__(
        self,
        record: Evaluation,
        batches: Callable[[], Iterable[Batch]],
        tokenizer,
        *,
        labels: torch.Tensor | None = None,
        classes: ClassPrompts | None = None,
        captions: list[list[str]] | None = None,
        batch_size: int = 64,
        frames: Callable[[int], np.ndarray] | None = None,
        cache_mb: int = CACHE_MB,
    ):
        self.record, self.tokenizer, self.batch_size = record, tokenizer, batch_size
        self.labels, self.classes, self.captions = labels, classes, captions
        self._frames, self._sides = frames, build_sides(record)
        self.batches = CachedBatches(batches, cache_mb)
        self.vectors_NC: torch.Tensor | None = None
        self.usage: dict[str, list[list[float]]] = {}
        _check(record, labels, classes, captions)
        self.rows = len(captions if labels is None else labels)
        self.rows_N = torch.arange(self.rows)

    @classmethod
    def serves(cls, run, record: Evaluation) -> bool:
        return record.captioner is None and (record.modality != "text" or record.head != "pair")

    @classmethod
    def build(cls, split: Split, record: Evaluation) -> "TextEvaluator":
        source, answer_mask = record.source, record.answer_at == "mask"
        asked = record.modality == "text" or answer_mask  # the text is what is read
        return cls(
            record,
            split.batches(source, used_views(record), record.name, text=TextNeeds(mask_at_answer=answer_mask)),
            split.processor.tokenizer,
            labels=None if source.label is None else split.labels(source),
            classes=class_prompts(split.run, record, split.reader(source)),
            captions=None if source.text is None or asked else split.captions(source),
            batch_size=split.batch_size,
            frames=partial(split.frames, source, record.views) if record.modality == "vision" else None,
        )

    def run(self, model) -> Iterator[Metric]:
        modality, name = self.record.modality, self.record.name
        found = self._embed(model)
        self.rows_N, self.vectors_NC, self.usage = found.rows_N, found.vectors[modality], found.usage
        if len(self.rows_N) < self.rows:
            yield Metric(f"left_out/{name}", float(self.rows - len(self.rows_N)), "count")
        prompts_PC = None if self.classes is None else self._texts(model, self.classes.prompts())
        candidates, numbers = self._candidates(model, found)
        yield from self._scores(self.vectors_NC, prompts_PC, candidates, numbers)
        for count in model.config.matryoshka if self.record.head == "pair" else ():
            first = lambda vectors, count=count: None if vectors is None else first_values(vectors, count)  # noqa: E731
            for metric in self._scores(*map(first, (self.vectors_NC, prompts_PC, candidates)), numbers):
                kind, measure = metric.name.split(f"/{name}/", 1)
                yield metric._replace(name=f"{kind}/{name}/first_{count}/{measure}", shown=None)

    def _scores(
        self, vectors_NC: torch.Tensor, prompts_PC: torch.Tensor | None, candidates: torch.Tensor | None,
        numbers: list[list[int]] | None,
    ) -> Iterator[Metric]:  # fmt: skip
        """Of unit vectors of the rows, of the classes' prompts, and of what belongs to the rows, as `_candidates` gives it."""
        name = self.record.name
        if prompts_PC is not None:
            classes_KC = class_vectors(prompts_PC, len(self.classes.templates))
            label_N = self.labels[self.rows_N].to(vectors_NC.device)
            for k in (1, 5) if len(classes_KC) > 5 else (1,):
                shown = Shown("zero-shot", panel=ACCURACY) if k == 1 else None
                found_k = accuracy(vectors_NC, classes_KC, label_N, k)
                yield Metric(f"zero_shot/{name}/top{k}", found_k, "share", "higher", shown)
            recall = mean_class_recall(vectors_NC, classes_KC, label_N)
            yield Metric(f"zero_shot/{name}/mean_per_class_recall", recall, "share", "higher")
            if self.record.answer_at == "mask":
                match = self._exact_match(classes_KC, label_N)
                yield Metric(f"answers/{name}/exact_match", match, "share", "higher", Shown("answers"))
        if candidates is not None:
            captions = [self.captions[row] for row in self.rows_N.tolist()]
            if numbers is not None:
                yield from all_captions(name, vectors_NC, candidates, numbers)
            else:
                yield from both_directions(name, vectors_NC, candidates, [own[0] for own in captions], self._sides.target)

    def _embed(self, model) -> Embedded:
        """Each row's vector, and where captions say which rows are equal, that of what it is compared with."""
        sides = self._sides
        alone = self.captions is None or self.record.captions == "all"
        embed = (lambda batch: [sides.query(model, batch)]) if alone else partial(both, sides, model)
        return embed_by(embed, self.batches, next(model.parameters()).device)

    def _exact_match(self, classes_KC: torch.Tensor, label_N: torch.Tensor) -> float:
        names = self.classes.names
        best_N = (self.vectors_NC @ classes_KC.T).argmax(1)
        return exact_match([names[k] for k in best_N.tolist()], [[names[k]] for k in label_N.tolist()])

    def _candidates(self, model, found: Embedded) -> tuple[torch.Tensor | None, list[list[int]] | None]:
        """The vectors of what belongs to the rows, and which of them each row has; None: the one of its place."""
        if self.captions is None:
            return None, None
        if self.record.captions == "all":
            return self._all_captions(model, [self.captions[row] for row in self.rows_N.tolist()])
        return found.vectors[self._sides.target], None

    def _all_captions(self, model, captions: list[list[str]]) -> tuple[torch.Tensor, list[list[int]]]:
        """The vectors of the distinct captions, [P, C], and which of them each row has; those without a token are passed over."""
        distinct = [text for text in dict.fromkeys(chain(*captions)) if has_tokens(text, self.tokenizer)]
        numbers = {text: number for number, text in enumerate(distinct)}
        return self._texts(model, distinct), [[numbers[text] for text in own if text in numbers] for own in captions]

    def _texts(self, model, texts: list[str]) -> torch.Tensor:
        """The vectors of texts as candidates, [P, C]. All ranks call it."""
        shape = dict(batch_size=self.batch_size, rank=rank(), world=world_size())
        prompts = prompt_batches(self.tokenizer, texts, self.record.views.text.length, **shape)
        embedded = embed_by(lambda batch: [self._sides.candidates(model, batch)], prompts, next(model.parameters()).device)
        self.usage.setdefault("text", embedded.usage["text"])
        return embedded.vectors["text"]

    def projection(self, count: int) -> Projection | None:
        if self.vectors_NC is None:
            return None
        rows = min(count, len(self.vectors_NC))
        labels = self.label_names()
        return Projection(self.vectors_NC[:rows], labels and labels[:rows], self.thumbnails(rows))

    def label_names(self) -> list[str] | None:
        """What each row of `vectors_NC` shows, in words where there are any; None without labels."""
        if self.labels is None:
            return None
        return [self.classes.names[label] if self.classes else str(label) for label in self.labels[self.rows_N].tolist()]

    def thumbnails(self, rows: int, side: int = 32) -> torch.Tensor | None:
        """The middle frame of the first `rows` rows of `vectors_NC`, float [rows, 3, side, side] in [0, 1]; None for what is not
        seen."""
        if self._frames is None:
            return None
        clips = [self._frames(row) for row in self.rows_N[:rows].tolist()]
        pictures = [Image.fromarray(clip[len(clip) // 2]).resize((side, side)) for clip in clips]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255


def _check(record: Evaluation, labels, classes, captions):
    where = f"evaluation {record.name}"
    if classes is None and captions is None:
        raise UserError(f"{where} measures nothing", fix="set `classes`, `source.text`, or both")
    if classes is not None and record.target != "text":
        raise UserError(f"{where}: classes are texts", got=f"target = {record.target}", allowed='target = "text"')
    read = list(dict.fromkeys((*record.modality.split(JOINED), record.target, "text")))
    if any(getattr(record.views, modality) is None for modality in read):
        needed = " and ".join(f"views.{modality}" for modality in read)
        raise UserError(f"{where} lacks a view", got=", ".join(record.views.names()), allowed=needed)
    if classes is not None and labels is None:
        raise UserError(f"{where} classifies, but source.label names no column", fix="set source.label")
    if classes is not None and int(labels.max()) >= len(classes.names):
        raise UserError(
            f"{where}: a label has no class name", got=int(labels.max()), allowed=f"0 to {len(classes.names) - 1}",
            fix="let `classes` name the entry of classes.json that belongs to this source",
        )  # fmt: skip
