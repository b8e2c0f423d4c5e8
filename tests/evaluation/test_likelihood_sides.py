"""Evaluations by the likelihood head: equal to a direct computation, for what was trained and for what never was."""

from types import SimpleNamespace

import pytest
import torch

from imp_ds import ImpForPreTraining, ImpModel
from imp_ds.errors import UserError
from imp_ds.evaluation import by_name, evaluate
from imp_ds.evaluation.zero_shot import ClassPrompts
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.evaluation.masked_language import MaskedLanguageEvaluator
from imp_ds.families.imp.evaluation.similarity import TextEvaluator
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.answer_mask import preprocess_with_mask
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp.conditions import Sides, segment_attributes
from imp_ds.models.imp.likelihood import encode_at_mask, encode_with_spe
from imp_ds.objectives import Likelihood
from imp_ds.tasks import Batch, Source, Task

NAMES = ["dog", "cat", "cow"]
TEXTS = ["the dog barks", "what [MASK] is it", "a cat", "the cow moos", "a dog", "the cat meows"]
TOKENIZER = train_tokenizer([*TEXTS, *NAMES], 60)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SOURCE = Source(path="none", vision="v", audio="a", text="t", label="l")
VIEWS = Views(vision=VisionView(height=8, width=8), audio=AudioView(), text=TextView(length=6))
TASKS = [
    Task(name=name, source=SOURCE, views=VIEWS, objectives=[Likelihood(**fields)], batch_size=4)
    for name, fields in dict(
        image_class=dict(inputs=["vision"], candidates=NAMES), words=dict(inputs=["text"], candidates="vocabulary", rate=0.4)
    ).items()
]
SHAPE = dict(
    size="tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, text_max=8, common_dim=16,
    vision_patch=(1, 4, 4), vision_max=(1, 8, 8), audio_patch=(4, 4), audio_max=(8, 8),
)  # fmt: skip


def build(**changes) -> ImpForPreTraining:
    torch.manual_seed(0)
    return ImpForPreTraining(ModelSettings(**SHAPE, **changes).to_config(len(TOKENIZER), TASKS, TOKENIZER)).eval()


def full() -> Batch:
    draw = torch.Generator().manual_seed(0)
    inputs = {
        "vision": dict(
            pixel_values=torch.randint(0, 256, (6, 4, 48), dtype=torch.uint8, generator=draw),
            pixel_positions=torch.rand(6, 4, 3, generator=draw),
        ),
        "audio": dict(
            input_features=torch.randn(6, 4, 16, generator=draw), feature_positions=torch.rand(6, 4, 2, generator=draw)
        ),
        "text": {name: torch.from_numpy(values) for name, values in preprocess_with_mask(TEXTS, TOKENIZER, 6).items()},
    }
    return Batch("any", inputs, {"index": torch.arange(6), "valid": torch.ones(6, dtype=torch.bool)})


def evaluator(classes: bool = True, captions: bool = False, **fields) -> TextEvaluator:
    record = Evaluation(**{**dict(name="x", modality="vision", source=SOURCE, views=VIEWS, head="likelihood"), **fields})
    prompts = ClassPrompts(NAMES, ["{}", "a {}"]) if classes else None
    return TextEvaluator(
        record,
        lambda: iter([full()]),
        TOKENIZER,
        labels=LABELS,
        classes=prompts,
        captions=[[text] for text in TEXTS] if captions else None,
        batch_size=4,
    )


def vectors(model: ImpModel, modalities: list[str], target: bool, sides: Sides | None, task: str | None, batch: Batch):
    """Of a sequence of these modalities, whose conditions are said by hand."""
    attributes = lambda m: None if sides is None else segment_attributes(m, sides, target)  # noqa: E731
    parts = [(m, batch.inputs[m], model.condition(m, task, target=target, attributes=attributes(m))) for m in modalities]
    with torch.no_grad():
        encoded = encode_at_mask(model, parts) if len(modalities) > 1 else encode_with_spe(model, parts)
        return model.likelihood(encoded.pooled_BD)


def class_vectors(model, sides, task):
    prompts = TOKENIZER(
        [t.format(n) for n in NAMES for t in ("{}", "a {}")], padding="max_length", max_length=6, return_tensors="pt"
    )
    batch = Batch("any", {"text": dict(input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"])}, {})
    return vectors(model, ["text"], True, sides, task, batch).view(3, 2, -1).mean(1)


ATTRIBUTES = dict(num_experts=4, gate="attribute", moe_layers="all")


@pytest.mark.parametrize("changes, task", [({}, None), (dict(num_experts=4, gate="task", moe_layers="all"), "image_class")])
def test_classes_and_captions_by_the_head_equal_a_direct_computation(changes, task):
    model, batch = build(**changes), full()
    results = by_name(evaluate(model, [evaluator(captions=True, task=task)]))
    image, class_KC = vectors(model.imp, ["vision"], False, None, task, batch), class_vectors(model.imp, None, task)
    best = (image @ (class_KC / class_KC.norm(dim=1, keepdim=True)).T).argmax(1)
    assert results["zero_shot/x/top1"] == pytest.approx((best == LABELS).double().mean().item())
    text = vectors(model.imp, ["text"], True, None, task, batch)
    found = (image @ text.T).argmax(1) == torch.arange(6)
    assert results["retrieval/x/x_to_text/R@1"] == pytest.approx(found.double().mean().item())


def test_a_modality_that_no_task_has_trained_has_a_composed_condition():
    """Sounds, whose bits stand together in no task; the same bits by hand give the same answers, others do not."""
    model, batch = build(**ATTRIBUTES), full()
    found = evaluator(modality="audio")
    results = by_name(evaluate(model, [found]))
    sides = Sides(frozenset(["audio"]), frozenset(["text"]))
    waveform, class_KC = vectors(model.imp, ["audio"], False, sides, None, batch), class_vectors(model.imp, sides, None)
    torch.testing.assert_close(found.vectors_NC, waveform)
    assert results["zero_shot/x/top1"] == ((waveform @ class_KC.T).argmax(1) == LABELS).double().mean()
    other = vectors(model.imp, ["audio"], False, Sides(frozenset(["audio"]), frozenset(["vision"])), None, batch)
    assert (other - waveform).abs().max() > 1e-3


def test_recordings_find_images_that_they_were_never_compared_with():
    model, batch = build(**ATTRIBUTES), full()
    results = by_name(evaluate(model, [evaluator(classes=False, captions=True, modality="audio", target="vision")]))
    sides = Sides(frozenset(["audio"]), frozenset(["vision"]))
    waveform, image = (
        vectors(model.imp, ["audio"], False, sides, None, batch),
        vectors(model.imp, ["vision"], True, sides, None, batch),
    )
    for direction, scores in (("x_to_vision", waveform @ image.T), ("vision_to_x", image @ waveform.T)):
        expected = (scores.argmax(1) == torch.arange(6)).double().mean().item()
        assert results[f"retrieval/x/{direction}/R@1"] == pytest.approx(expected)


def test_answers_to_questions_are_measured_to_the_letter():
    model, batch = build(**ATTRIBUTES), full()
    results = by_name(evaluate(model, [evaluator(answer_at="mask")]))
    sides = Sides(frozenset(["vision", "text"]), frozenset(["text"]))
    asked, class_KC = vectors(model.imp, ["vision", "text"], False, sides, None, batch), class_vectors(model.imp, sides, None)
    expected = ((asked @ class_KC.T).argmax(1) == LABELS).double().mean().item()
    assert results.pop("zero_shot/x/mean_per_class_recall") > 0
    assert results == {"zero_shot/x/top1": pytest.approx(expected), "answers/x/exact_match": pytest.approx(expected)}


def test_texts_are_classified():
    found = list(by_name(evaluate(build(), [evaluator(modality="text")])))
    assert found == ["zero_shot/x/top1", "zero_shot/x/mean_per_class_recall"]


def test_hidden_words_are_measured_by_the_head_and_the_words_are_encoded_once():
    model, encoded = build(), []
    record = Evaluation(name="words", modality="text", source=SOURCE, views=VIEWS)
    candidates = model.objectives["words"].parts[0].candidates
    encode = candidates.encode
    candidates.encode = lambda *args: encoded.append(1) or encode(*args)
    results = by_name(evaluate(model, [MaskedLanguageEvaluator(record, TASKS[1], TEXTS, TOKENIZER, batch_size=2)]))
    assert list(results) == ["masked_language/words/accuracy", "masked_language/words/perplexity"] and len(encoded) == 1
    again = by_name(evaluate(model, [MaskedLanguageEvaluator(record, TASKS[1], TEXTS, TOKENIZER, batch_size=6)]))
    assert again == pytest.approx(results)


def test_what_cannot_be_measured_is_said():
    run = SimpleNamespace(name="x", modality="vision", source=SOURCE, views=VIEWS)
    for fields, said in ((dict(answer_at="mask"), "need head"), (dict(target="audio"), "need head")):
        with pytest.raises(ValueError, match=said):
            Evaluation(**vars(run), **fields)
    with pytest.raises(ValueError, match="retrieved by itself"):
        Evaluation(**vars(run), head="likelihood", target="vision")
    with pytest.raises(UserError, match="classes are texts"):
        evaluator(modality="audio", target="vision")
    without = ImpForPreTraining(ModelSettings(**SHAPE).to_config(len(TOKENIZER), [], TOKENIZER))
    with pytest.raises(UserError, match="no likelihood head"):
        by_name(evaluate(without, [evaluator()]))
    with pytest.raises(UserError, match="image_class, words"):  # gates that know tasks alone compose nothing
        by_name(evaluate(build(num_experts=4, gate="task", moe_layers="all"), [evaluator()]))
