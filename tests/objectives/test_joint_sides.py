"""Two modalities that are read together against text: the record, the model that compares them, and evaluations of it."""

import pytest
import torch

from helpers.small_model import audio_inputs, clip_inputs, small_model, text_inputs
from imp_ds.evaluation import evaluate
from imp_ds.evaluation.metric import by_name
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.evaluation.similarity import TextEvaluator
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Contrastive, task_entry
from imp_ds.tasks import Batch, Source, Task
from imp_ds.train.engine.micro_batches import MicroBatches

ROWS, JOINT = 6, "vision+audio"
INPUTS = {"vision": clip_inputs(ROWS, 2, 3, 3), "audio": audio_inputs(ROWS), "text": text_inputs([5, 8, 1, 3, 9, 2], 9)}
RECORD = Contrastive(pairs=[(("audio", "vision"), "text"), ("audio", "text")])
CHANGES = dict(
    objectives={"clips": task_entry([RECORD])}, pairs=[(JOINT, "text"), ("audio", "text")], num_experts=4, moe_layers="last:1",
    group_examples=1,
)  # fmt: skip


def test_a_record_names_both_in_one_order():
    assert RECORD.pairs == [(JOINT, "text"), ("audio", "text")]
    assert Contrastive(pairs=[("audio+vision", "text")]).pairs == [(JOINT, "text")]
    assert RECORD.needs().modalities == {"vision", "audio", "text"} and RECORD.sides().inputs == {"vision", "audio"}
    sequences = RECORD.sequences({"vision": 18, "audio": 16, "text": 9}, 4)
    assert {name: found.length for name, found in sequences.items()} == {JOINT: 34, "text": 9, "audio": 16}
    for wrong in ([("vision+audio", "audio")], [("vision+vision", "text")]):
        with pytest.raises(ValueError):
            Contrastive(pairs=wrong)


def test_a_model_of_such_a_task_has_their_space():
    source = Source(path="none", vision="v", audio="a", text="t")
    views = Views(vision=VisionView(height=8, width=8), audio=AudioView(seconds=1.0), text=TextView(length=9))
    task = Task(name="clips", source=source, views=views, objectives=[RECORD], batch_size=4)
    config = ModelSettings(size="tiny").to_config(50, [task])
    assert [JOINT, "text"] in config.pairs and ["vision", "text"] in config.pairs


def test_the_loss_is_that_of_one_sequence_of_both_in_micro_batches_too():
    torch.manual_seed(0)
    model = ImpForPreTraining(small_model(**CHANGES).config).eval()
    batch = Batch("clips", INPUTS, {})
    loss, metrics, _ = model(batch)
    with torch.no_grad():
        together = model.imp.encode_segments([(m, INPUTS[m], model.imp.condition(m, "clips")) for m in ("vision", "audio")])
        alone = {m: model.imp.encode(m, INPUTS[m]) for m in ("audio", "text")}
        pooled = {JOINT: together.pooled_BD, **{m: encoding.pooled_BD for m, encoding in alone.items()}}
        expected, found = model.compare("clips", pooled, {})
        given = {name: value for inputs in INPUTS.values() for name, value in inputs.items()}
        vectors = model.imp(**given, task="clips").embeddings
    assert metrics["loss/contrastive"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert metrics[f"accuracy/{JOINT}_to_text"] == found[f"accuracy/{JOINT}_to_text"]
    torch.testing.assert_close(vectors[f"{JOINT}_to_text"], model.imp.project(together.pooled_BD, JOINT, "text"))
    assert f"text_to_{JOINT}" in vectors and f"{JOINT}_to_text" not in model.imp(**INPUTS["audio"]).embeddings
    output = MicroBatches(lambda part, fn: fn(model, part), batch, 3).forward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-4)


def test_an_evaluation_of_both_retrieves_by_their_vectors():
    model, captions = small_model(**CHANGES), [f"clip {row}" for row in range(ROWS)]
    views = {"vision": {"height": 12, "width": 12}, "audio": {"seconds": 1.0}, "text": {"length": 9}}
    source = {"path": "clips", "vision": "v", "audio": "a", "text": "t"}
    record = Evaluation(name="clips", modality=["audio", "vision"], source=source, views=views, task="clips")
    index = torch.arange(ROWS)
    batches = lambda: [Batch("clips", INPUTS, {"index": index, "valid": index >= 0})]  # noqa: E731
    evaluator = TextEvaluator(record, batches, None, captions=[[caption] for caption in captions])
    results = by_name(evaluate(model, [evaluator]))
    with torch.no_grad():
        vectors = model(**{k: v for inputs in INPUTS.values() for k, v in inputs.items()}, task="clips").embeddings
    scores = vectors[f"{JOINT}_to_text"] @ vectors[f"text_to_{JOINT}"].T
    first = (scores.argmax(1) == index).double().mean().item()
    assert results["retrieval/clips/clips_to_text/R@1"] == pytest.approx(first)
    torch.testing.assert_close(evaluator.vectors_NC, vectors[f"{JOINT}_to_text"], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='head = "pair" alone'):
        Evaluation(name="clips", modality=JOINT, source=source, views=views, head="likelihood")
