"""Probes: how well a simple classifier tells classes apart by a frozen model's features, by published protocols.

The protocols, with their constants, stand in `docs/evaluation.md`; each classifier is a function of features in a file of its
own, and `probe` runs them over numbers of samples per class and over draws.
"""

from imp_ds.evaluation.probes.knn import knn_predictions
from imp_ds.evaluation.probes.least_squares import least_squares_predictions
from imp_ds.evaluation.probes.logistic import chosen_c_predictions, given_c_predictions
from imp_ds.evaluation.probes.protocol import ALL, Features, ProbeOptions, Score, drawn_rows, draws, probe

__all__ = [
    "ALL", "Features", "ProbeOptions", "Score", "chosen_c_predictions", "drawn_rows", "draws", "given_c_predictions",
    "knn_predictions", "least_squares_predictions", "probe",
]  # fmt: skip
