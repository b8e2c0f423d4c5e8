"""The evaluator of captions: against a direct computation, what it counts once and what it leaves out, and what it refuses.

Shapes: B entries of a batch, T words of a caption, V words of the vocabulary.
"""

from math import exp

import pytest
import torch

from helpers.pictures import CAPTIONS, LENGTH, TASK, TOKENIZER, batch_of, pictures, small_model
from imp_ds.errors import UserError
from imp_ds.evaluation import by_name, evaluate
from imp_ds.evaluation.captions import bleu4, cider
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.evaluation.captioning import CaptioningEvaluator
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp.generation.caption_sequence import query_states
from imp_ds.tasks import Batch, Source

REFERENCES = [[caption, caption.replace("stands", "is")] for caption in CAPTIONS]
SOURCE = Source(path="pictures", vision="file_name", text="captions")
VIEWS = Views(vision=VisionView(height=8, width=8), text=TextView(length=LENGTH))


def record(**changes) -> Evaluation:
    known = dict(name="pictures", modality="vision", source=SOURCE, views=VIEWS, captioner="captions", beam=2)
    return Evaluation(**{**known, **changes})


def entries(rows: list[int], valid: list[bool] | None = None) -> Batch:
    targets = {"index": torch.tensor(rows), "valid": torch.tensor(valid or [True] * len(rows))}
    return Batch("evaluation", {"vision": pictures(rows)}, targets)


def build(*batches: Batch, references=REFERENCES, **changes) -> CaptioningEvaluator:
    return CaptioningEvaluator(record(**changes), TASK, lambda: batches, references, TOKENIZER)


@pytest.fixture(scope="module")
def model():
    """A little trained, so that captions differ and some words are right."""
    model = small_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(30):
        loss, _, _ = model(batch_of(range(16), step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_results_equal_a_direct_computation(model):
    rows = [3, 0, 12, 7, 9]
    found = by_name(evaluate(model, [build(entries(rows[:3]), entries(rows[3:]))]))
    generated = model.generate_captions(**pictures(sorted(rows)), beam=2, longest=LENGTH)
    generated = [text.strip() for text in TOKENIZER.batch_decode(generated, skip_special_tokens=True)]
    assert len(set(generated)) > 1
    objective, batch = model.objectives["captions"].parts[0], batch_of(sorted(rows))
    with torch.no_grad():
        encodings = model.encode(batch)
        states_BTD = query_states(encodings[objective.sequence])[:, 0]
        log_p_BTV = objective.log_probabilities(model.imp, states_BTD, objective.vectors(model.imp, encodings)).double()
    reported = batch.targets["caption"] != IGNORED
    words, log_p_NV = batch.targets["caption"][reported], log_p_BTV[reported]
    expected = {
        "left_out/pictures": 11.0,
        "captioning/pictures/bleu4": bleu4(generated, [REFERENCES[row] for row in sorted(rows)]),
        "captioning/pictures/cider": cider(generated, [REFERENCES[row] for row in sorted(rows)]),
        "captioning/pictures/accuracy": (log_p_NV.argmax(1) == words).double().mean().item(),
        "captioning/pictures/perplexity": exp(-log_p_NV.gather(1, words[:, None]).mean().item()),
    }
    assert found == pytest.approx(expected, rel=1e-4) and list(found) == list(expected)
    assert 0 < expected["captioning/pictures/accuracy"] < 1


def test_what_fills_up_a_batch_is_not_counted(model):
    rows = [3, 0, 12, 7, 9]
    once = by_name(evaluate(model, [build(entries(rows))]))
    filled = by_name(evaluate(model, [build(entries(rows[:4]), entries([9, 9, 9, 9], [True, False, False, False]))]))
    assert filled == pytest.approx(once, rel=1e-4)


def test_of_several_entries_of_a_row_the_surest_caption_is_taken(model):
    """Windows of a recording: here the pictures of rows 1 and 2 pose as two of row 0."""
    batch = entries([1, 2])
    batch.targets["index"] = torch.tensor([0, 0])
    evaluator = build(batch)
    by_name(evaluate(model, [evaluator]))
    objective, imp = model.objectives["captions"].parts[0], model.imp
    with torch.no_grad():
        words_VC = objective.candidates.vectors(imp, objective.candidates.encode(imp, "captions"))
        prefix = objective.conditioning_prefix(imp, "captions", "vision", pictures([1, 2]))
        ids_BL, score_B = objective.generate(imp, prefix, words_VC, size=2, longest=LENGTH)
    surest = TOKENIZER.decode(ids_BL[score_B.argmax()], skip_special_tokens=True).strip()
    assert evaluator.generated == [(0, surest)]


def test_examples_are_the_first_entries_with_what_was_generated(model):
    evaluator = build(entries([3, 0, 12]), entries([7, 9, 1]))
    by_name(evaluate(model, [evaluator]))
    batch, rows = evaluator.examples(2)
    assert torch.equal(batch.inputs["vision"]["pixel_values"], pictures([3, 0])["pixel_values"])
    assert rows == [(dict(evaluator.generated)[row], REFERENCES[row][0]) for row in (3, 0)]


def test_what_is_refused(model):
    for fields in (dict(classes="images"), dict(templates=["a {}"]), dict(head="likelihood")):
        with pytest.raises(ValueError, match="captioner measures captions alone"):
            record(**fields)
    with pytest.raises(UserError, match="lacks a view"):
        build(views=Views(vision=VIEWS.vision))
    with pytest.raises(UserError, match="generates no captions"):
        CaptioningEvaluator(record(), TASK.model_copy(update={"objectives": []}), list, REFERENCES, TOKENIZER)
    with pytest.raises(UserError, match="measures nothing"):
        build(references=[[], []])
    with pytest.raises(UserError, match="pictures and audio"):
        build(modality="text", views=Views(text=VIEWS.text))
    with pytest.raises(UserError, match="has no tokens"):
        by_name(evaluate(model, [build(entries([0]), references=[[" "]])]))
