"""The Evaluation record: what a run measures of a source over a whole split. Adding one to a recipe is one entry."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from imp_ds.modalities import JOINED, ModalityName, SideName
from imp_ds.modalities.views import Views
from imp_ds.records import Record
from imp_ds.registry import EVALUATORS
from imp_ds.tasks import Source


class Evaluation(Record):
    """One evaluation of a source over a whole split: zero-shot of vision or audio against text, or of text alone.

    With `classes` it classifies: the class names, put through prompt templates, are the text. With `source.text` it
    retrieves captions from the modality and the modality from captions. With modality text it hides words of `source.text`
    as the task of the evaluation's name does, and has them found by that task's head; with head "likelihood" it classifies
    texts instead. With `captioner` it generates captions of the modality, and compares them with `source.text`.
    """

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=100,
        description="in results: zero_shot/{name}/top1, retrieval/{name}/..., captioning/{name}/bleu4, and "
        "masked_language/{name}/..., where it names a task",
    )
    evaluator: Annotated[str, AfterValidator(EVALUATORS.known)] | None = Field(
        None, description="what measures: one that an imported module registers; None: whichever the other fields ask for"
    )
    options: dict[str, JsonValue] = Field({}, description="of an evaluator that has some of its own")
    modality: SideName = Field(description='what is evaluated; "vision+audio": both together, by the pair of both and text')
    source: Source = Field(description="where its samples come from")
    views: Views = Field(description="how they are seen; the text view also for class names")
    head: Literal["pair", "likelihood"] = Field(
        "pair", description="what compares: the projections of a pair of modalities, or the head of likelihood tasks"
    )
    answer_at: Literal["start", "mask"] = Field(
        "start", description="likelihood: mask: source.text asks, beside the modality, and the answer is a class"
    )
    target: ModalityName = Field("text", description="likelihood: what is retrieved; rows with equal source.text are equal")
    captions: Literal["first", "all"] = Field(
        "first",
        description="retrieval: those of a row that are searched and looked for; all: a row is found by each, and has been "
        "found where any is (COCO, Flickr30k)",
    )
    task: str | None = Field(
        None,
        description="a task of the run that task and attribute gates get; without one likelihood gives attribute "
        "gates its queries and candidates, which no task need have trained",
    )
    captioner: str | None = Field(
        None, description="a task of the run that generates the captions, of this modality or another"
    )
    beam: int = Field(4, ge=1, description="captioner: beginnings that the search for a caption keeps; 1: greedy search")
    length_penalty: float = Field(1.0, ge=0.0, description="captioner: 0 prefers short captions; the larger, the longer")
    classes: str | None = Field(None, description="entry of {data.root}/classes.json with class names and prompt templates")
    templates: list[str] = Field(
        [], description='prompts with one {} for the class name, where source.label_names has the names instead of `classes`'
    )

    def kind_of(self, field):
        return EVALUATORS[self.evaluator].Options if field == "options" and self.evaluator is not None else None

    @model_validator(mode="after")
    def _head_fits(self):
        if self.head == "pair" and (self.answer_at == "mask" or self.target != "text"):
            raise ValueError(f'evaluation {self.name}: answers at a mask, and targets other than text, need head = "likelihood"')
        if JOINED in self.modality and (self.head != "pair" or self.captioner is not None):
            raise ValueError(f'evaluation {self.name}: {self.modality} together are compared by head = "pair" alone')
        if self.target == self.modality and self.target != "text":
            raise ValueError(f"evaluation {self.name}: {self.modality} would be retrieved by itself: set another target")
        if self.captions == "all" and self.target != "text":
            raise ValueError(f"evaluation {self.name}: captions = all is of texts, but its target is {self.target}")
        if self.captioner is not None and (self.classes or self.templates or self.head == "likelihood"):
            raise ValueError(f"evaluation {self.name}: captioner measures captions alone; classes need one of their own")
        if self.evaluator is not None:
            EVALUATORS.options(self.evaluator, self.options)
        elif self.options:
            raise ValueError(f"evaluation {self.name}: options are those of an evaluator, but evaluator names none")
        return self
