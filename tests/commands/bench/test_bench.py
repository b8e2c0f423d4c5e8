"""`bench MODEL`: what each suite measures, that a finished one is not measured again, what is refused before anything is read."""

import json

import pytest
import torch

from helpers.exported import NAMES, ROWS, export, make_run, write_media
from imp_ds.commands.bench import command
from imp_ds.commands.bench.command import bench
from imp_ds.commands.bench.suites import probe, zero_shot
from imp_ds.commands.exported_model import load_model
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators
from imp_ds.evaluation import evaluate as run_evaluators

SUITES = ["zero-shot", "retrieval", "probe"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of the model, its run, its corpus)."""
    root, folder = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("run") / "model"
    write_media(root)
    return folder, export(root, folder), root


@pytest.fixture(scope="module")
def measured(exported, tmp_path_factory):
    """(the results of all suites of one's own evaluations, their folder)."""
    output = tmp_path_factory.mktemp("bench")
    return bench(exported[0], SUITES, output, batch_size=4), output


def test_suites_measure_what_eval_and_probes_measure(exported, measured):
    folder, run, _ = exported
    results, output = measured
    network, processor = load_model(folder)
    metrics = run_evaluators(network, build_evaluators(run, processor, "test", heads_of=()))
    for metric in metrics:
        if metric.name.startswith("zero_shot/"):
            assert results[metric.name] == metric.value
    kinds = {name.split("/")[0] for name in results}
    assert kinds == {"zero_shot", "retrieval", "probe"}
    assert {f"probe/{kind}/{measure}" for kind in ("image", "video", "audio")
            for measure in ("knn1_1", "least_squares_5", "least_squares_25_spread", "knn9_all")} <= set(results)  # fmt: skip
    assert not any("logistic" in name for name in results)  # 46 fits: a suite of its own


def test_retrieval_is_by_all_captions(exported, measured):
    """Of the recordings, against a loop over rows and captions."""
    folder, run, _ = exported
    network, processor = load_model(folder)
    (evaluator,) = build_evaluators(run.model_copy(update={"evaluations": [run.evaluations[2]]}), processor, "test", heads_of=())
    run_evaluators(network, [evaluator])
    captions = [[f"a {NAMES[row % 3]} square", f"{NAMES[row % 3]} {row}"] for row in range(ROWS["test"])]
    pairs = [(row, text) for row, own in enumerate(captions) for text in own]
    with torch.no_grad():
        text = torch.stack([evaluator._texts(network.imp, [name])[0] for _, name in pairs])
    cosines = evaluator.vectors_NC @ text.T
    any_found = [any(pairs[i][1] in own for i in cosines[row].topk(5).indices.tolist()) for row, own in enumerate(captions)]
    by_each = [any(pairs[i][1] in captions[row] for row in cosines[:, i].topk(5).indices.tolist()) for i in range(len(pairs))]
    results, _ = measured
    assert results["retrieval/audio/audio_to_text/R@5"] == pytest.approx(sum(any_found) / 7)
    assert results["retrieval/audio/text_to_audio/R@5"] == pytest.approx(sum(by_each) / 14)


def test_scores_are_kept_under_the_fields_names_with_a_picture(measured):
    results, output = measured
    entries = {(entry["task"], entry["dataset"]): entry["metrics"] for entry in json.loads((output / "results.json").read_text())}
    found = entries["zeroshot_classification", "image"]
    assert found["acc1"] == results["zero_shot/image/top1"] and "mean_per_class_recall" in found
    assert entries["zeroshot_retrieval", "audio"]["audio_to_text/R@1"] == results["retrieval/audio/audio_to_text/R@1"]
    kept = json.loads((output / "probe.json").read_text())
    assert kept["versions"]["torch"] and kept["seconds"] > 0 and kept["key"]["evaluations"][0]["evaluator"] == "probe"
    assert (output / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_suite_is_not_measured_again_unless_something_is_another(exported, measured, monkeypatch, capsys):
    folder, _, root = exported
    results, output = measured
    calls = []
    real = command.measure
    monkeypatch.setattr(command, "measure", lambda *given: calls.append(given[0]) or real(*given))
    assert bench(folder, SUITES, output) == results and calls == []
    assert "measured before" in capsys.readouterr().out
    bench(folder, ["zero-shot"], output, split="train")  # another split
    assert calls == ["zero-shot"]
    bench(folder, ["zero-shot"], output, recipe=make_run(root), settings=['evaluations.image.templates=["{}"]'])
    assert calls == ["zero-shot"] * 2
    (output / "retrieval.json").write_text('{"key": 1')
    with pytest.raises(UserError, match="(?s)delete .*retrieval.json"):
        bench(folder, ["retrieval"], output)


def test_what_cannot_be_measured_is_refused_before_the_model_is_loaded(exported, tmp_path, monkeypatch):
    folder, _, root = exported
    monkeypatch.setattr(command, "load_model", None)
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    for suites, settings, said in (
        (["zero-shots"], [], "(?s)unknown suite.*did you mean zero-shot"),
        (["mteb:own"], [], r"(?s)need mteb.*imp_ds\[eval\]"),
        (["probe"], ["evaluations=[]"], "(?s)suite probe has nothing to measure.*--recipe"),
    ):
        with pytest.raises(UserError, match=said):
            bench(folder, suites, tmp_path / "out", settings=settings)
    with pytest.raises(UserError, match="unknown split"):
        bench(folder, ["zero-shot"], tmp_path / "out", split="tests")
    assert not (tmp_path / "out").exists()


def test_modalities_that_are_compared_together_are_not_probed(exported):
    _, run, _ = exported
    record = run.evaluations[0].model_copy(update={"modality": "vision+audio"})
    assert probe(record) is None and zero_shot(record) is not None
