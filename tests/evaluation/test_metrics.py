"""Zero-shot accuracy and recall against hand counts and a float64 brute force."""

import json

import numpy as np
import pytest
import torch

from imp_ds.errors import UserError
from imp_ds.evaluation.metric import by_name
from imp_ds.evaluation.retrieval import RECALLS, all_captions, both_directions, caption_groups, recall
from imp_ds.evaluation.zero_shot import ClassPrompts, accuracy, class_vectors, load_classes


def unit(rng, rows, width=8):
    x = rng.standard_normal((rows, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_prompts_and_class_vectors_by_hand():
    classes = ClassPrompts(["cat", "dog"], ["a {}", "the {}!"])
    assert classes.prompts() == ["a cat", "the cat!", "a dog", "the dog!"]
    # cat: mean of (1,0) and (0,1) is (.5,.5), length sqrt(.5) -> (.7071, .7071); dog: twice (0,-1) -> (0,-1)
    prompts_PC = torch.tensor([[1.0, 0], [0, 1], [0, -1], [0, -1]])
    torch.testing.assert_close(class_vectors(prompts_PC, 2), torch.tensor([[0.5**0.5, 0.5**0.5], [0, -1]]))


def test_accuracy_by_hand():
    classes_KC = torch.eye(3)
    # row 0: scores 1, 0, 0 with label 0: first. Row 1: .6, .8, 0 with label 0: second. Row 2: equal scores: last of three.
    # Row 3: not a number: behind all.
    vectors_NC = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0.5, 0.5, 0.5], [float("nan")] * 3])
    label_N = torch.tensor([0, 0, 1, 2])
    assert [accuracy(vectors_NC, classes_KC, label_N, k) for k in (1, 2, 3)] == [0.25, 0.5, 1.0]


def test_accuracy_equals_brute_force():
    rng = np.random.default_rng(1)
    rows, classes, label = unit(rng, 300), unit(rng, 12), rng.integers(0, 12, 300)
    order = np.argsort(-(rows @ classes.T), axis=1)
    for k in (1, 5):
        expected = np.mean([label[i] in order[i, :k] for i in range(300)])
        assert accuracy(torch.tensor(rows), torch.tensor(classes), torch.tensor(label), k) == pytest.approx(expected, abs=0)


def test_recall_by_hand():
    # One query; candidates score .9 (wrong), .8 (own), .8 (wrong, a tie counts as better), .1: two are better than the own.
    query_QC, candidate_NC = torch.tensor([[1.0]]), torch.tensor([[0.9], [0.8], [0.8], [0.1]])
    assert recall(query_QC, candidate_NC, torch.tensor([1]), torch.arange(4)) == {1: 0.0, 5: 1.0, 10: 1.0}
    # the same with the .9 carrying the query's own caption
    assert recall(query_QC, candidate_NC, torch.tensor([1]), torch.tensor([1, 1, 2, 3]))[1] == 1.0


def test_a_broken_or_collapsed_model_recalls_nothing():
    groups, same = torch.arange(20), torch.ones(20, 4)
    assert recall(same, same, groups, groups) == {1: 0.0, 5: 0.0, 10: 0.0}
    assert recall(same * float("nan"), same, groups, groups) == {1: 0.0, 5: 0.0, 10: 0.0}


def test_recall_in_pieces_equals_brute_force_with_repeated_captions(monkeypatch):
    monkeypatch.setattr("imp_ds.evaluation.retrieval._CHUNK_SCORES", 1000)  # pieces of 4 queries
    rng = np.random.default_rng(0)
    captions = [f"caption {i}" for i in rng.integers(0, 90, 230)]
    media = unit(rng, 230)
    text = media + 0.9 * unit(rng, 230)  # so that recalls are neither 0 nor 1
    expected = {}
    for direction, query, candidate in (("film_to_text", media, text), ("text_to_film", text, media)):
        order = np.argsort(-(query @ candidate.T), axis=1)
        for k in RECALLS:
            hits = [any(captions[j] == captions[i] for j in order[i, :k]) for i in range(230)]
            expected[f"retrieval/film/{direction}/R@{k}"] = np.mean(hits)
    found = by_name(both_directions("film", torch.tensor(media), torch.tensor(text), captions))
    assert found == pytest.approx(expected, abs=1e-12) and 0.2 < found["retrieval/film/film_to_text/R@1"] < 0.99


def test_caption_groups():
    assert caption_groups(["a", "b", "a", "c"]).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    "content, word",
    [
        (None, "no class names"),
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({"films": {}}), "allowed: films"),
        (json.dumps({"images": {"names": [], "templates": ["{}"]}}), "not usable"),
        (json.dumps({"images": {"names": ["one"], "templates": ["a digit"]}}), "exactly one {}"),
    ],
)
def test_unusable_class_names_are_refused(tmp_path, content, word):
    path = tmp_path / "classes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=word):
        load_classes(path, "images")


def test_class_names_are_read(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"images": {"names": ["one", "two"], "templates": ["a {}"]}}))
    assert load_classes(path, "images").prompts() == ["a one", "a two"]


def test_media_with_several_captions_are_found_by_each_and_find_any():
    """30 rows of 1 to 3 captions, of which some are shared; against loops in float64."""
    rng = np.random.default_rng(4)
    captions = [[f"caption {rng.integers(40)}" for _ in range(1 + row % 3)] for row in range(30)]
    distinct = list(dict.fromkeys(text for own in captions for text in own))
    media, vectors = unit(rng, 30), unit(rng, len(distinct))
    text = {name: vectors[number] for number, name in enumerate(distinct)}
    pairs = [(row, name) for row, own in enumerate(captions) for name in own]
    expected = {}
    for k in RECALLS:
        forward, back = [], []
        for row, own in enumerate(captions):
            order = sorted(range(len(pairs)), key=lambda i: -media[row] @ text[pairs[i][1]])
            forward.append(any(pairs[i][1] in own for i in order[:k]))
        for _, name in pairs:
            order = sorted(range(30), key=lambda row: -media[row] @ text[name])
            back.append(any(name in captions[row] for row in order[:k]))
        expected[f"retrieval/x/x_to_text/R@{k}"], expected[f"retrieval/x/text_to_x/R@{k}"] = np.mean(forward), np.mean(back)
    numbers = [[distinct.index(name) for name in own] for own in captions]
    found = all_captions("x", torch.from_numpy(media), torch.from_numpy(vectors), numbers)
    assert {metric.name: metric.value for metric in found} == pytest.approx(expected)
