"""Means over seeds, and the fits that turn them into scaling efficiencies (paper section 6).

power law    L = a C^-b, a straight line through log L and log C; an irreducible loss is left out
linear fit   NE gain in % against the cheapest model, on GFLOP per candidate; slopes of two kinds give their ratio
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, standard deviation (of a sample; 0 for one seed) and how many."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class PowerLaw:
    """L = factor x C^-exponent."""

    factor: float
    exponent: float


@dataclass(frozen=True)
class Line:
    """gain = slope x C + intercept."""

    slope: float
    intercept: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """Over the seeds; None where a value is undefined or there are none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0, len(known))


def power_law(flops: Sequence[float], losses: Sequence[float]) -> PowerLaw | None:
    """Fits losses against operations; None without two different amounts of operations.

    Args:
        flops: in any unit, above 0.
        losses: above 0.
    """
    if len(set(flops)) < 2:
        return None
    slope, intercept = np.polyfit(np.log(flops), np.log(losses), 1)
    return PowerLaw(float(np.exp(intercept)), float(-slope))


def gain_line(gflops: Sequence[float], losses: Sequence[float], reference: float) -> Line | None:
    """Fits the gain in per cent over a reference loss; None without two different amounts of operations.

    Args:
        gflops: per candidate.
        losses: of the models.
        reference: what a gain of 0 is.
    """
    if len(set(gflops)) < 2:
        return None
    gains = 100 * (reference - np.asarray(losses)) / reference
    slope, intercept = np.polyfit(gflops, gains, 1)
    return Line(float(slope), float(intercept))
