"""Stochastic length (SL): most long histories are cut to a common length, a few stay whole, at random.

With N the longest history of a stream and alpha in (1, 2], a history of n events

    n <= N^(alpha / 2)   stays whole
    otherwise            stays whole with probability N^alpha / n^2, or else only its newest N^(alpha / 2) events stay

so that attention's quadratic cost of a history is about N^alpha, whatever its length. What stays is the newest part: a
prefix, that is, offset arithmetic. In evaluation every history is whole.

Legend: B requests.
"""

from __future__ import annotations

import numpy as np


def sampling_length(max_length: int, alpha: float) -> int:
    """The length that histories are cut to, at least 1: the whole part of max_length^(alpha / 2)."""
    return max(1, int(max_length ** (alpha / 2)))


def keep_probability(length_B: np.ndarray, *, max_length: int, alpha: float) -> np.ndarray:
    """(B,) float64, the probability that a history stays whole: min(1, N^alpha / n^2), and 1 up to the cut.

    Args:
        length_B: (B,) history lengths, at most max_length.
        max_length: N.
        alpha: of stochastic length.
    """
    squared_B = np.maximum(length_B, 1).astype(np.float64) ** 2
    probability_B = np.minimum(1.0, float(max_length) ** alpha / squared_B)
    # The cut is a whole number: what it cannot shorten is whole with certainty.
    probability_B[length_B <= sampling_length(max_length, alpha)] = 1.0
    return probability_B


def stochastic_lengths(length_B: np.ndarray, uniform_B: np.ndarray, *, max_length: int, alpha: float) -> np.ndarray:
    """How many of its newest events each history keeps.

    Args:
        length_B: (B,) history lengths, at most max_length.
        uniform_B: (B,) draws from [0, 1), one per request.
        max_length: N.
        alpha: of stochastic length.

    Returns:
        (B,) int64.
    """
    whole_B = uniform_B < keep_probability(length_B, max_length=max_length, alpha=alpha)
    cut_B = np.minimum(length_B, sampling_length(max_length, alpha))
    return np.where(whole_B, length_B, cut_B).astype(np.int64)


def loads(length_B: np.ndarray, gamma: float) -> np.ndarray:
    """(B,) float64, what histories of these lengths cost: n^gamma."""
    return length_B.astype(np.float64) ** gamma


def expected_loads(length_B: np.ndarray, *, max_length: int, alpha: float, gamma: float) -> np.ndarray:
    """(B,) float64, the mean cost of each history under stochastic length.

    The mean over its coin, not one throw: it has the same mean and none of the noise.
    """
    probability_B = keep_probability(length_B, max_length=max_length, alpha=alpha)
    cut_B = np.minimum(length_B, sampling_length(max_length, alpha))
    return probability_B * loads(length_B, gamma) + (1 - probability_B) * loads(cut_B, gamma)
