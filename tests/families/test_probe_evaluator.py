"""The evaluator that probes a model, against probes of features computed picture by picture; what it refuses and leaves out."""

import numpy as np
import pytest
import torch

from helpers.probed import SOURCE, TEST_ROWS, TRAIN_ROWS, probe_evaluator, probe_model, probe_run, square, write_squares
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators, by_name, evaluate
from imp_ds.evaluation.metric import in_one_line
from imp_ds.evaluation.probes import drawn_rows
from imp_ds.evaluation.probes.least_squares import least_squares_predictions
from imp_ds.models.imp import ImpImageProcessor


def pooled(model, numbers) -> torch.Tensor:
    """The features of squares, one forward each, float [N, D]."""
    pictures = ImpImageProcessor(size=8, patch=(1, 4, 4))
    with torch.no_grad():
        inputs = [dict(pictures(square(number), return_tensors="pt")) for number in numbers]
        return torch.cat([model.encode("vision", one).pooled_BD for one in inputs])


def test_probes_read_pooled_features_of_drawn_training_samples(tmp_path):
    write_squares(tmp_path)
    model, evaluator = probe_model().eval(), probe_evaluator(tmp_path)
    metrics = evaluate(model, [evaluator])
    results = by_name(metrics)
    train, test = pooled(model, range(TRAIN_ROWS)), pooled(model, range(TRAIN_ROWS, TRAIN_ROWS + TEST_ROWS))
    label_R, expected_M = np.arange(TRAIN_ROWS) % 3, torch.arange(TRAIN_ROWS, TRAIN_ROWS + TEST_ROWS) % 3
    right = []
    for draw in range(2):
        rows = torch.from_numpy(drawn_rows(label_R, 3, 0, draw))
        predicted = least_squares_predictions(train[rows], torch.from_numpy(label_R)[rows], test)
        right.append((predicted == expected_M).double().mean().item())
    assert results["probe/colour/least_squares_3"] == pytest.approx(np.mean(right))
    assert results["probe/colour/least_squares_3_spread"] == pytest.approx(np.std(right, ddof=1))
    every = least_squares_predictions(train, torch.from_numpy(label_R), test)
    assert results["probe/colour/least_squares_all"] == pytest.approx((every == expected_M).double().mean().item())
    assert {"probe/colour/knn1_1", "probe/colour/knn3_3", "probe/colour/knn3_all"} < set(results)
    line = in_one_line(metrics)  # on the console: of each method its last number of samples
    assert line.startswith("probe colour knn ") and line.count("least squares") == 1
    torch.testing.assert_close(evaluator.projection(4).vectors_NC, test[:4], atol=1e-6, rtol=0)
    assert by_name(evaluate(model, [evaluator])) == results  # while a model trains it is asked again


def test_only_drawn_samples_are_encoded_and_broken_ones_are_left_out_and_counted(tmp_path):
    write_squares(tmp_path)
    few = probe_evaluator(tmp_path, per_class=[2], draws=1)
    assert few.rows.tolist() == drawn_rows(np.arange(TRAIN_ROWS) % 3, 2, 0, 0).tolist() and len(few.rows) == 6
    (tmp_path / "squares" / "train" / f"{few.rows[0]}.png").write_bytes(b"no picture")
    (tmp_path / "squares" / "validation" / f"{TRAIN_ROWS}.png").write_bytes(b"no picture")
    assert by_name(evaluate(probe_model(), [few]))["left_out/colour"] == 2


def test_what_cannot_be_probed_is_refused_before_a_model_is_read(tmp_path):
    write_squares(tmp_path)
    run = probe_run(tmp_path)
    for record, split, said in (
        (run.evaluations[0], "train", "trained on the split train"),
        (
            run.evaluations[0].model_copy(update={"source": SOURCE.model_copy(update={"label": None})}),
            "validation",
            "learns labels",
        ),
    ):
        with pytest.raises(UserError, match=said):
            build_evaluators(run.model_copy(update={"evaluations": [record]}), None, split, heads_of=())
    with pytest.raises(ValueError, match="per_class"):
        probe_run(tmp_path, per_class=["most"])
