"""NE and AUC of two models on the same candidates, and the paired bootstrap of their differences. NumPy only.

Users are drawn, not candidates: a user's candidates resemble each other, and intervals that forget it are too narrow.

Legend: C candidates, U users, S bootstrap samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flows.nightly.record import Interval

_SAMPLES_AT_ONCE = 16


@dataclass(frozen=True)
class Resampling:
    """How often each user is drawn in each bootstrap sample.

    Attributes:
        user_C: (C,) int64 which of the U users a candidate belongs to.
        weight_SU: (S, U) float32 counts.
    """

    user_C: np.ndarray
    weight_SU: np.ndarray

    @classmethod
    def of_users(cls, user_id_C: np.ndarray, samples: int, seed: int) -> Resampling:
        """Draws U users with replacement, S times; equal arguments give equal draws."""
        users, user_C = np.unique(user_id_C, return_inverse=True)
        rng = np.random.default_rng(seed)
        weight_SU = np.zeros((samples, len(users)), np.float32)
        for weight_U in weight_SU:
            np.add.at(weight_U, rng.integers(0, len(users), len(users)), 1)
        return cls(user_C, weight_SU)

    def sums(self, values_C: np.ndarray) -> np.ndarray:
        """(S,) sums of the candidates' values in each sample."""
        per_user = np.bincount(self.user_C, values_C, self.weight_SU.shape[1])
        return self.weight_SU.astype(np.float64) @ per_user


def log_loss(logits_C: np.ndarray, labels_C: np.ndarray) -> np.ndarray:
    """(C,) cross-entropy of each candidate, in nats."""
    logits = logits_C.astype(np.float64)
    return np.logaddexp(0.0, logits) - labels_C * logits


def normalized_entropy(loss_sum: np.ndarray, positives: np.ndarray, total: np.ndarray) -> np.ndarray:
    """NE of sums: mean loss over the entropy of the base rate; NaN where there is one class only."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = positives / total
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        return loss_sum / total / np.where((positives > 0) & (positives < total), entropy, np.nan)


def ne(logits_C: np.ndarray, labels_C: np.ndarray) -> float:
    """NE of all candidates; NaN with one class only."""
    sums = (np.array([values.sum()]) for values in (log_loss(logits_C, labels_C), labels_C, np.ones(labels_C.size)))
    return float(normalized_entropy(*sums)[0])


def ne_samples(logits_C: np.ndarray, labels_C: np.ndarray, drawn: Resampling) -> np.ndarray:
    """(S,) NE of each bootstrap sample."""
    ones = np.ones(labels_C.size)
    return normalized_entropy(
        drawn.sums(log_loss(logits_C, labels_C)), drawn.sums(labels_C.astype(np.float64)), drawn.sums(ones)
    )


class SortedScores:
    """A model's candidates in the order of their scores, ready for AUCs with many weightings."""

    def __init__(self, logits_C: np.ndarray, labels_C: np.ndarray) -> None:
        self._order = np.argsort(logits_C, kind="stable")
        ordered = logits_C[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if ordered.size else np.empty(0, int)
        self._labels = labels_C[self._order].astype(bool)

    def auc(self, weight_SC: np.ndarray) -> np.ndarray:
        """(S,) AUCs: the chance that a positive scores above a negative, half for equal scores; NaN with one class."""
        weight = weight_SC[:, self._order].astype(np.float64)
        positive = np.add.reduceat(weight * self._labels, self._starts, axis=1)
        negative = np.add.reduceat(weight * ~self._labels, self._starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative
        with np.errstate(divide="ignore", invalid="ignore"):
            pairs = positive.sum(axis=1) * negative.sum(axis=1)
            return (positive * (below + negative / 2)).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)


def auc(logits_C: np.ndarray, labels_C: np.ndarray) -> float:
    """AUC of all candidates; NaN with one class only."""
    if labels_C.size == 0:
        return math.nan
    return float(SortedScores(logits_C, labels_C).auc(np.ones((1, labels_C.size)))[0])


def auc_samples(logits_C: np.ndarray, labels_C: np.ndarray, drawn: Resampling) -> np.ndarray:
    """(S,) AUC of each bootstrap sample."""
    scores = SortedScores(logits_C, labels_C)
    parts = [
        scores.auc(drawn.weight_SU[start : start + _SAMPLES_AT_ONCE][:, drawn.user_C])
        for start in range(0, len(drawn.weight_SU), _SAMPLES_AT_ONCE)
    ]
    return np.concatenate(parts)


def interval(middle: float, samples_S: np.ndarray, confidence: float) -> Interval | None:
    """Percentile interval; None where the difference is undefined in too many samples to speak of it."""
    known = samples_S[np.isfinite(samples_S)]
    if not math.isfinite(middle) or known.size < len(samples_S) / 2:
        return None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(middle=middle, low=float(low), high=float(high))


def calibration(logits_C: np.ndarray, labels_C: np.ndarray) -> float:
    """Mean prediction over mean label; NaN without positives."""
    predicted = 1 / (1 + np.exp(-logits_C.astype(np.float64)))
    return float(predicted.sum() / labels_C.sum()) if labels_C.sum() else math.nan
