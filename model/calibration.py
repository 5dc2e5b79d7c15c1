"""How far predicted probabilities are from observed rates, in bins of equally many candidates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class CalibrationBin:
    """Neighbouring predictions: their mean, the share of positives among them, and how many there are."""

    mean_predicted: float
    mean_label: float
    count: int


def calibration_bins(logits_C: np.ndarray, labels_C: np.ndarray, num_bins: int) -> list[CalibrationBin]:
    """Sorts candidates by prediction and cuts them into bins whose sizes differ by at most one.

    Args:
        logits_C: (C,) predictions.
        labels_C: (C,) 0/1.
        num_bins: bins; with fewer candidates than that, one bin each.
    """
    order = np.argsort(logits_C, kind="stable")
    # tanh instead of exp: it does not overflow
    probability_C = 0.5 * (1 + np.tanh(logits_C[order].astype(np.float64) / 2))
    sorted_labels_C = labels_C[order].astype(np.float64)
    edges = np.linspace(0, logits_C.size, min(num_bins, logits_C.size) + 1).round().astype(int)
    return [
        CalibrationBin(
            float(probability_C[start:end].mean()), float(sorted_labels_C[start:end].mean()), int(end - start)
        )
        for start, end in pairwise(edges)
    ]
