"""How good a model's answers in conversations are: generated greedily, and compared with what the assistant says there.

Each question is asked three times: with its media, blind, and with those of another conversation. What a model answers as well
without having seen anything, it does not answer from what it sees.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from pydantic import Field

from imp_ds.errors import UserError
from imp_ds.evaluation.answers import exact_match, multiple_choice, word_error_rate
from imp_ds.evaluation.captions import bleu4, cider
from imp_ds.evaluation.evaluator import Evaluator, register_evaluator
from imp_ds.evaluation.metric import ACCURACY, Metric, Panel, Shown
from imp_ds.evaluation.split import CACHE_MB, Split
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.uni_moe.evaluation.questions import BLIND, MODES, OWN, SHUFFLED, Question, Questions
from imp_ds.modalities.modality import Wanted
from imp_ds.parallel.gather import gather_objects
from imp_ds.parallel.groups import on_main, rank, world_size
from imp_ds.records import Record
from imp_ds.tasks import Batch


class _Measure(NamedTuple):
    """of: from the texts of questions, answers and the references of each; label: before its value in the console's line."""

    name: str
    of: Callable[[list[str], list[str], list[list[str]]], float]
    label: str = ""
    unit: str = "share"
    better: str = "higher"
    panel: Panel | None = None


_MEASURES = {
    "exact_match": [_Measure("exact_match", lambda _, found, wanted: exact_match(found, wanted), panel=ACCURACY)],
    "multiple_choice": [
        _Measure("multiple_choice", lambda asked, found, wanted: multiple_choice(asked, found, _firsts(wanted)), panel=ACCURACY)
    ],
    "wer": [_Measure("wer", lambda _, found, wanted: word_error_rate(found, _firsts(wanted)), "WER ", better="lower")],
    "captions": [
        _Measure("bleu4", lambda _, found, wanted: bleu4(found, wanted), "BLEU-4 "),
        _Measure("cider", lambda _, found, wanted: cider(found, wanted), "CIDEr ", unit=""),
    ],
}


class AnswersOptions(Record):
    """What `Evaluation.options` may set."""

    metric: Literal["exact_match", "multiple_choice", "wer", "captions"] = Field(
        "exact_match", description="what answers are measured by; multiple_choice: questions have lines A. ..., B. ..."
    )
    max_new_tokens: int = Field(32, ge=1, description="most tokens of an answer")
    blind: bool = Field(True, description="ask with blank media too")
    shuffled: bool = Field(True, description="ask with the media of other conversations too")
    samples: int | None = Field(None, ge=1, description="conversations that are asked, spread over the split; None: all")


@register_evaluator
class AnswersEvaluator(Evaluator):
    """`run(model)` yields of each metric `answers/{name}/{metric}`, with _blind and _shuffled behind it for the questions without
    their media, where there are media; and left_out/{name} where rows cannot be used.

    After a run, `asked` has a line for each question: key, prompt, reference, and what was answered. All of it is exact over the
    split on any number of ranks: each question is asked once, on one of them.
    """

    kind = "answers"
    family = "uni_moe"
    reads_heads = True
    Options = AnswersOptions

    def __init__(self, split: Split, record: Evaluation):
        if record.views.messages is None or record.modality not in record.source.roles():
            got = "views.messages" if record.views.messages is None else "source.messages"
            raise UserError(f"evaluation {record.name} asks nothing", got=f"{got} is not set", fix=f"set {got}")
        super().__init__(split, record)
        self._options, self._processor = self.options(), split.processor
        wanted = Wanted(settings=split.run.data.decoding, conversation_tokens=split.processor.conversations.conversation_tokens)
        self.questions = Questions(split.reader(record.source), record.views, wanted, self._options.samples, CACHE_MB)
        self.asked: list[dict] = []
        every = [question for group in self.questions.groups.values() for question in group]
        for metric in self._measured(every, [question.references[0] for question in every], OWN):
            pass  # references that cannot be compared are reported before anything is generated
        self._modes = [mode for mode in MODES if mode == OWN or getattr(self._options, mode)]

    @classmethod
    def serves(cls, run, record: Evaluation) -> bool:
        return record.modality == "messages"

    def run(self, model) -> Iterator[Metric]:
        """All ranks call this together and get the same values."""
        found: dict[tuple[int, str], tuple[str, str]] = {}
        for kinds in self.questions.groups:
            for mine in self._rounds(self.questions.groups[kinds]):
                for mode in self._modes if kinds else [OWN]:
                    found |= self._ask(model, kinds, mine, mode)
        for of_rank in gather_objects(found):
            found |= of_rank
        every = sorted(question for group in self.questions.groups.values() for question in group)
        every = [question for question in every if (question.row, OWN) in found]
        if not every:
            raise UserError(
                f"evaluation {self.record.name}: no conversation can be used", fix="imp_ds data check RECIPE shows why"
            )
        self.asked = [self._line(question, found) for question in every]
        if left_out := len(self.questions.rows) - len(every):
            yield Metric(f"left_out/{self.record.name}", float(left_out), "count")
        for mode in self._modes if any(self.questions.groups) else [OWN]:
            answered = [(question, answer[1]) for question in every if (answer := self._answer(found, question, mode))]
            if answered:
                yield from self._measured(*zip(*answered), mode)

    def examples(self, count: int) -> tuple[Batch, list[tuple[str, str]]]:
        """What was asked and answered, beside the reference; of the first questions of the split."""
        lines = self.asked[:count]
        return Batch(self.record.name, {}, {}), [(f"{line['prompt']} {line['answer']}", line["reference"]) for line in lines]

    def lines(self) -> list[dict]:
        return self.asked

    def _rounds(self, group: list[Question]) -> Iterator[list[Question]]:
        """This rank's share of the questions, in as many rounds as the others have; the last ones may be empty."""
        size, world = self.split.batch_size, world_size()
        for start in range(0, len(group), size * world):
            first = start + rank() * size
            yield group[first : min(first + size, start + size * world)]

    def _ask(self, model, kinds: tuple[str, ...], mine: list[Question], mode: str) -> dict[tuple[int, str], tuple[str, str]]:
        """{(row, mode): (prompt, answer)} of this rank's questions that can be asked. A rank that has none asks one of another,
        so that all ranks take each step together."""
        # the model's modules: runs of other families, which ask all evaluators whether they serve, need none of them
        from imp_ds.families.uni_moe.answering import check_room, generate, prompt_inputs

        def prepared():
            prompts = [(question.row, self.questions.prompt(question, mode)) for question in mine]
            prompts = [(row, prompt) for row, prompt in prompts if prompt is not None]
            asked = [prompt for _, prompt in prompts] or [self.questions.any_prompt(kinds)]
            if asked == [None]:
                return None
            inputs = prompt_inputs(self._processor, asked)
            check_room(model, inputs, self._options.max_new_tokens)
            return prompts, inputs

        if (found := on_main(prepared, "a question cannot be asked", every_rank=True)) is None:
            return {}  # none of the group can be decoded, on no rank
        prompts, inputs = found
        answers = generate(model, self._processor, inputs, max_new_tokens=self._options.max_new_tokens)
        return {(row, mode): (self._written(prompt), answer) for (row, prompt), answer in zip(prompts, answers)}

    def _written(self, prompt: list[dict]) -> str:
        return self._processor.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)

    @staticmethod
    def _answer(found: dict, question: Question, mode: str) -> tuple[str, str] | None:
        """(prompt, answer) in a mode; a question without media is the same in all."""
        return found.get((question.row, mode if question.kinds else OWN))

    def _line(self, question: Question, found: dict) -> dict:
        """A line of what was asked, for a file."""
        prompt, answer = self._answer(found, question, OWN)
        line = {"key": question.key, "prompt": prompt, "reference": question.references[0], "answer": answer}
        if len(question.references) > 1:
            line["references"] = [*question.references]
        for mode in (BLIND, SHUFFLED):
            if question.kinds and (other := self._answer(found, question, mode)) is not None:
                line[f"answer_{mode}"] = other[1]
        return line

    def _measured(self, questions, answers, mode: str) -> Iterator[Metric]:
        texts, references = [question.question for question in questions], [[*question.references] for question in questions]
        for measure in _MEASURES[self._options.metric]:
            suffix, shown = ("", Shown("answers", measure.label, measure.panel)) if mode == OWN else (f"_{mode}", None)
            value = measure.of(texts, list(answers), references)
            yield Metric(f"answers/{self.record.name}/{measure.name}{suffix}", value, measure.unit, measure.better, shown)


def _firsts(references: list[list[str]]) -> list[str]:
    return [of_question[0] for of_question in references]
