"""The likelihood head and its objectives: by hand, on toys that can be learned, and what must change nothing.

Shapes: B samples, L tokens of a text, D width, C width of the common space, K candidates.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from helpers.grammar import AUDIOS, SENTENCES
from imp_ds import ImpForPreTraining
from imp_ds.errors import UserError
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.text import tokens as text
from imp_ds.modalities.text.answer_mask import preprocess_with_mask
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp.likelihood import LikelihoodHead, Scale
from imp_ds.objectives import Likelihood
from imp_ds.objectives.candidates import Names
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch, Source, Task

ANIMALS = list(AUDIOS)
SOURCE = Source(path="none", vision="v", text="t", label="l")
VIEWS = Views(vision=VisionView(height=8, width=8), text=TextView(length=6))
TOKENIZER = train_tokenizer([*SENTENCES, "which animal is it"], 80)


def task(name: str, **fields) -> Task:
    return Task(name=name, source=SOURCE, views=VIEWS, objectives=[Likelihood(**fields)], batch_size=8)


TASKS = [
    task("animal", inputs=["vision"], candidates=ANIMALS, templates=["{}", "the {}"]),
    task("words", inputs=["text"], candidates="vocabulary", rate=0.34),
    task("pairs", inputs=["vision"], candidates="batch"),
    task("question", inputs=["vision", "text"], candidates=ANIMALS, answer_at="mask"),
    task("sound", inputs=["text"], candidates=[[a] for a in ANIMALS], answer_at="mask"),
]
SHAPE = dict(
    size="tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, text_max=8, common_dim=16,
    vision_patch=(1, 4, 4), vision_max=(1, 8, 8),
)  # fmt: skip


def build(**changes) -> ImpForPreTraining:
    torch.manual_seed(0)
    return ImpForPreTraining(ModelSettings(**SHAPE, **changes).to_config(len(TOKENIZER), TASKS, TOKENIZER))


def images(count: int = 8) -> dict[str, torch.Tensor]:
    """Of four patches each, all different."""
    draw = torch.Generator().manual_seed(1)
    positions = torch.tensor([[0.0, y / 2, x / 2] for y in range(2) for x in range(2)]).repeat(count, 1, 1)
    return dict(pixel_values=torch.randint(0, 256, (count, 4, 48), dtype=torch.uint8, generator=draw), pixel_positions=positions)


def tensors(arrays: dict) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def batch_of(name: str, texts: list[str] | None = None, *, answer_mask: bool = False, words=None, step: int = 0) -> Batch:
    texts = texts or SENTENCES[:8]
    made = tensors((preprocess_with_mask if answer_mask else text.preprocess)(texts, TOKENIZER, 6))
    targets = {"label": torch.arange(8)} | ({} if words is None else {"token_ids": words})
    return Batch(name, {"vision": images(), "text": made}, targets, sample_keys(0, step, 0, 8))


def learn(model: ImpForPreTraining, make, steps: int, rate: float = 5e-3) -> dict:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate)
    for step in range(steps):
        loss, metrics, _ = model(make(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return metrics


def test_logits_are_cosines_times_the_scale_by_hand():
    head = LikelihoodHead(SimpleNamespace(hidden_size=2, common_dim=2, layer_norm_eps=1e-6), ["a", "b"])
    head.linear.weight.data, head.linear.bias.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2)
    head.norm.weight.data, head.norm.bias.data = torch.ones(2), torch.tensor([0.0, 3.0])
    for scale in head.scales.values():
        scale.initialize_parameters()
    # (5, 1) is normed to (1, -1), shifted to (1, 2), mapped to (3, 2); (0, 2) to (-1, 1), (-1, 4), (-3, 4)
    vectors = head(torch.tensor([[5.0, 1.0], [0.0, 2.0]]))
    torch.testing.assert_close(vectors, torch.tensor([[3.0, 2.0], [-3.0, 4.0]]) / torch.tensor([[13**0.5], [5.0]]))
    # (3, 2) . (-3, 4) = -1
    expected = torch.tensor([[1.0, -1 / (5 * 13**0.5)], [-1 / (5 * 13**0.5), 1.0]]) / 0.07
    torch.testing.assert_close(head.logits(vectors, vectors, "a"), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="no such family"):
        head.scale("c")


def test_the_scale_is_capped_and_comes_back():
    scale = Scale()
    scale.initialize_parameters()
    assert scale().item() == pytest.approx(1 / 0.07)
    scale.log_scale.data.fill_(math.log(150))
    assert scale().item() == 100
    (-scale()).sum().backward()  # more would be better: there is no more
    assert scale.log_scale.grad.item() == 0
    scale().sum().backward()  # less would be better
    assert scale.log_scale.grad.item() == pytest.approx(150)


def test_a_family_has_one_scale_and_another_family_another():
    model = build()
    assert sorted(model.imp.likelihood.scales) == ["answers", "masked_language", "retrieval", "text_classes", "vision_classes"]
    model(batch_of("animal"))[0].backward()
    moved = {name for name, scale in model.imp.likelihood.scales.items() if scale.log_scale.grad is not None}
    assert moved == {"vision_classes"}


@pytest.mark.parametrize("changes", [{}, dict(num_experts=4, gate="attribute", moe_layers="all", experts_per_token=2)])
def test_classes_are_learned_by_their_names(changes):
    """Each step draws one of two templates of each name; what was learned holds for the first, and the scale has moved."""
    model = build(**changes)
    learn(model, lambda step: batch_of("animal", step=step), 80)
    model.eval()
    assert model.answer("animal", **images()).argmax(1).tolist() == list(range(8))
    assert abs(model.imp.likelihood.scale("vision_classes").item() - 1 / 0.07) > 0.1


def test_pairs_are_learned():
    metrics = learn(build(), lambda step: batch_of("pairs"), 40)
    assert metrics["accuracy/retrieval"] == 1 and metrics["loss/likelihood"] < 0.2


def test_retrieval_compares_both_ways_over_the_batch():
    model = build().eval()
    batch = batch_of("pairs")
    encodings = model.encode(batch)
    query_BC, candidate_BC = (model.imp.likelihood(encodings[name].pooled_BD) for name in ("spe+vision", "target+text"))
    logits_BB = query_BC @ candidate_BC.T / 0.07
    expected = (F.cross_entropy(logits_BB, torch.arange(8)) + F.cross_entropy(logits_BB.T, torch.arange(8))) / 2
    torch.testing.assert_close(model(batch)[0], expected)


def test_answers_are_read_at_the_mask():
    """The question's mark is in its middle, at its end, or not there; the animal is what the picture shows."""
    questions = ["which [MASK] is it", "which animal is it [MASK]", "which animal"] * 3
    model = build()
    learn(model, lambda step: batch_of("question", questions[:8], answer_mask=True), 40)
    batch = batch_of("question", questions[1:], answer_mask=True)  # each animal is asked for in other words
    chances = model.eval().answer("question", **batch.inputs["vision"], **batch.inputs["text"])
    assert (chances.argmax(1) == torch.arange(8)).float().mean() >= 0.75
    with pytest.raises(UserError, match="at a mask"):
        model.answer("question", **batch.inputs["vision"], **tensors(text.preprocess(["which animal"] * 8, TOKENIZER, 6)))


def test_texts_are_classified_at_the_mask():
    """The animal that makes a recording: a text alone, whose class is another text."""
    waveforms = [f"a [MASK] {waveform}" for waveform in AUDIOS.values()]
    metrics = learn(build(), lambda step: batch_of("sound", waveforms, answer_mask=True), 40)
    assert metrics["accuracy/text_classes"] == 1


@pytest.mark.parametrize("name", ["animal", "question", "pairs", "words"])
def test_what_stands_at_padding_changes_nothing(name):
    model = build().eval()
    labels_BL = torch.full((8, 6), IGNORED)
    labels_BL[:, 1] = 7
    batch = batch_of(name, answer_mask=name == "question", words=labels_BL)
    before = model(batch)[0]
    ids_BL, mask_BL = batch.inputs["text"]["input_ids"], batch.inputs["text"]["attention_mask"]
    assert (mask_BL == 0).any()
    ids_BL[mask_BL == 0] = 9
    torch.testing.assert_close(model(batch)[0], before)


def test_names_of_different_lengths_are_encoded_as_each_alone():
    model = build().eval()
    several = Names([[[5]], [[6, 7, 8]], [[9, 4]]])
    together = several.vectors(model.imp, several.encode(model.imp, "animal"))
    for ids, vector_C in zip([[5], [6, 7, 8], [9, 4]], together):
        alone = Names([[ids]])
        torch.testing.assert_close(alone.vectors(model.imp, alone.encode(model.imp, "animal"))[0], vector_C)


def test_hidden_words_are_found_among_all_words_and_others_teach_nothing():
    model = build().eval()
    labels_BL = torch.full((8, 6), IGNORED)
    labels_BL[0, 1], labels_BL[3, 2] = 5, 11
    batch = batch_of("words", words=labels_BL)
    encodings = model.encode(batch)
    states_BLD = encodings["spe+text"].tokens_BLD
    states_BLD.retain_grad()
    loss, _ = model.objectives["words"](model.imp, encodings, batch.targets)
    loss.backward()
    assert (states_BLD.grad.abs().sum(2) > 0).nonzero().tolist() == [[0, 2], [3, 3]]  # <SPE> is before them
    # by hand: every token of the vocabulary alone, as a candidate
    objective = model.objectives["words"].parts[0]
    vectors_VC = torch.cat([
        model.imp.likelihood(Names([[[word]]]).encode(model.imp, "words").pooled_BD) for word in range(len(TOKENIZER))
    ])  # fmt: skip
    torch.testing.assert_close(objective.vectors(model.imp, encodings), vectors_VC, rtol=1e-4, atol=1e-5)
    scores = model.imp.likelihood(states_BLD[[0, 3], [2, 3]]) @ vectors_VC.T / 0.07
    expected = F.cross_entropy(scores, torch.tensor([5, 11]), reduction="sum") / 8  # six texts have nothing to be found
    torch.testing.assert_close(loss, expected)


def test_hidden_words_of_the_grammar_are_learned():
    model = build()

    def make(step: int) -> Batch:
        rngs = [np.random.default_rng([step, row]) for row in range(len(SENTENCES))]
        made = tensors(text.preprocess_masked(SENTENCES, TOKENIZER, 6, 0.34, rngs))
        inputs = {name: made[name] for name in text.INPUT_NAMES}
        return Batch("words", {"text": inputs}, {"token_ids": made["token_ids"]}, sample_keys(0, step, 0, 16))

    learn(model, lambda step: make(step), 100)
    losses = [model(make(1000 + step))[1]["loss/likelihood"].item() for step in range(10)]
    # an article is a toss-up, and an animal and its audio tell each other: 0.23 is the least
    assert 0.2 < np.mean(losses) < 0.6


def test_candidates_have_the_condition_of_the_target_side():
    """Under an attribute gate a name is encoded otherwise than the same text that is read."""
    model = build(num_experts=4, gate="attribute", moe_layers="all").eval()
    asked = []
    condition = model.imp.condition
    model.imp.condition = lambda *args, **kwargs: asked.append((args, kwargs.get("target"))) or condition(*args, **kwargs)
    model(batch_of("animal"))
    assert asked == [(("vision", "animal"), None), (("text", "animal"), True)]


BAD = [
    (dict(inputs=["vision"], candidates=["one"]), "at least two names"),
    (dict(inputs=["vision"], candidates=["one", []]), "none of them empty"),
    (dict(inputs=["vision"], candidates=["one", "two"], templates=["a photo"]), "needs a {}"),
    (dict(inputs=["vision", "vision"]), "stands twice"),
    (dict(inputs=["vision"], target="audio"), 'candidates other than "batch" are texts'),
    (dict(inputs=["vision", "text"], candidates="batch"), "would give it away"),
    (dict(inputs=["vision"], candidates="vocabulary"), "need text among the inputs"),
    (dict(inputs=["vision"], answer_at="mask"), "need text among the inputs"),
    (dict(inputs=["text"], candidates="vocabulary", answer_at="mask"), "has no meaning"),
    (dict(inputs=["vision"], family="A b"), "pattern"),
]


@pytest.mark.parametrize("fields, said", BAD)
def test_a_record_that_cannot_be_learned_is_refused(fields, said):
    with pytest.raises(ValidationError, match=said.replace("{", r"\{")):
        Likelihood(**fields)


def test_what_a_model_cannot_do_is_said():
    settings = ModelSettings(**SHAPE, num_experts=4, moe_layers="all")
    with pytest.raises(UserError, match="candidates would depend on each other") as reported:
        settings.to_config(len(TOKENIZER), TASKS, TOKENIZER)
    assert "group_examples=1" in str(reported.value)
    with pytest.raises(UserError, match="names of its classes have not been read"):
        settings.to_config(len(TOKENIZER), [task("open", inputs=["vision"])], TOKENIZER)
    untold = ImpForPreTraining(ModelSettings(**SHAPE).to_config(len(TOKENIZER), TASKS))
    with pytest.raises(UserError, match="mask token"):
        untold(batch_of("pairs"))
    untold.imp.config.mask_token_id = 2
    with pytest.raises(UserError, match="does not know the texts of its candidates"):
        untold(batch_of("animal"))
