"""Measures of drift between two nights, and what one comparison found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from features.config import Closed

# A share below it counts as so much, so that one stray event in an empty class is no drift and an emptied class is.
MIN_SHARE = 1e-4
# Between two samples of the same source the PSI's mean is its noise; hardly ever is it above three times that.
_NOISE_MULTIPLE = 3.0
# A difference of rates within so many standard errors is chance.
_MIN_SIGMAS = 5.0

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Kind = Literal["count", "share", "psi", "list"]


class Thresholds(Closed):
    """How much may change from one night to the next.

    Attributes:
        min_events: rates and distributions of fewer events are not compared.
        max_count_factor: events and users, times or divided by.
        max_rate_change: of an action's rate, relative to the rate before.
        max_psi: of a distribution.
        min_vanishing_share: a surface or an action with this share before must not be gone.
        max_null_change, max_unknown_change, max_quarantine_change, max_duplicate_change: of shares, absolute.
        max_missing_days, max_missing_hours: newly empty ones.
        max_vocabulary_factor: rows of a field, times or divided by.
    """

    min_events: Annotated[int, Field(ge=1)]
    max_count_factor: Annotated[float, Field(ge=1)]
    max_rate_change: NonNegative
    max_psi: NonNegative
    min_vanishing_share: Share
    max_null_change: Share
    max_unknown_change: Share
    max_quarantine_change: Share
    max_duplicate_change: Share
    max_missing_days: Annotated[int, Field(ge=0)]
    max_missing_hours: Annotated[int, Field(ge=0)]
    max_vocabulary_factor: Annotated[float, Field(ge=1)]


class Check(Closed):
    """One comparison.

    Attributes:
        metric: what was compared.
        kind: how to show `before` and `now`.
        before, now: the figures, None for what has none.
        change: what is held against the limit.
        limit: what it may be, both as people read them.
        verdict: `few`: too few events to tell.
        note: what a reader must know besides.
    """

    metric: str
    kind: Kind
    before: float | None
    now: float | None
    change: str
    limit: str
    verdict: Literal["ok", "drift", "few"]
    note: str = ""


class Distribution(Closed):
    """Counts of the same classes before and now, for a PSI check and its picture."""

    metric: str
    classes: tuple[str, ...]
    before: tuple[int, ...]
    now: tuple[int, ...]


def shares(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Shares that add up to 1 and are nowhere below about MIN_SHARE."""
    counts = np.asarray(counts, np.float64)
    floored = np.maximum(counts / counts.sum(), MIN_SHARE)
    return floored / floored.sum()


def psi(before: Sequence[int] | np.ndarray, now: Sequence[int] | np.ndarray) -> float:
    """Population stability index of two histograms over the same classes; 0 for equal shares, symmetric.

    Neither may be empty. Below 0.1 is usually read as stable, above 0.25 as another population.
    """
    p, q = shares(before), shares(now)
    return float(((p - q) * np.log(p / q)).sum())


def psi_noise(before: Sequence[int] | np.ndarray, now: Sequence[int] | np.ndarray) -> float:
    """What the PSI is on average for two samples of these sizes from one source."""
    first, second = np.asarray(before), np.asarray(now)
    occupied = int(((first > 0) | (second > 0)).sum())
    return max(occupied - 1, 0) * (1 / float(first.sum()) + 1 / float(second.sum()))


def check_distribution(distribution: Distribution, limits: Thresholds, *, minimum: int) -> Check:
    """Holds the PSI against its limit, which leaves room for the noise of small samples; under `minimum` is too few."""
    before, now = distribution.before, distribution.now
    total_before, total_now = sum(before), sum(now)
    if min(total_before, total_now) < minimum:
        return _few(distribution.metric, "psi", None, None)
    value, limit = psi(before, now), limits.max_psi + _NOISE_MULTIPLE * psi_noise(before, now)
    return Check(
        metric=distribution.metric,
        kind="psi",
        before=None,
        now=value,
        change=f"PSI {value:.3f}",
        limit=f"at most {limit:.3f}",
        verdict="drift" if value > limit else "ok",
    )


def check_factor(metric: str, before: float, now: float, *, limit: float) -> Check:
    """Holds the ratio of two amounts, taken so that it is at least 1, against a limit."""
    ratio = _ratio(before, now)
    factor = max(ratio, 1 / ratio) if ratio > 0 else math.inf
    return Check(
        metric=metric,
        kind="count",
        before=before,
        now=now,
        change=f"x {ratio:.2f}" if math.isfinite(ratio) else "from nothing",
        limit=f"x {1 / limit:.2f} to {limit:.2f}",
        verdict="drift" if factor > limit else "ok",
    )


def _ratio(before: float, now: float) -> float:
    if before == now:
        return 1.0
    return now / before if before else math.inf


def check_rate(metric: str, before: tuple[int, int], now: tuple[int, int], *, limits: Thresholds) -> Check:
    """Holds the relative change of a rate, as (hits, trials), against a limit; what chance explains is no drift."""
    if min(before[1], now[1]) < limits.min_events:
        return _few(metric, "share", _rate(before), _rate(now))
    p, q = _rate(before), _rate(now)
    pooled = (before[0] + now[0]) / (before[1] + now[1])
    error = math.sqrt(pooled * (1 - pooled) * (1 / before[1] + 1 / now[1]))
    beyond_chance = abs(p - q) > _MIN_SIGMAS * error
    change = _ratio(p, q) - 1
    return Check(
        metric=metric,
        kind="share",
        before=p,
        now=q,
        change=f"{100 * change:+.1f} %" if math.isfinite(change) else "from nothing",
        limit=f"within {100 * limits.max_rate_change:g} %",
        verdict="drift" if beyond_chance and abs(change) > limits.max_rate_change else "ok",
        note="" if beyond_chance or abs(change) <= limits.max_rate_change else "as large as chance",
    )


def check_share(
    metric: str, before: tuple[int, int], now: tuple[int, int], *, limit: float, rises_only: bool = False
) -> Check:
    """Holds the difference of two shares, as (hits, trials), against a limit."""
    p, q = _rate(before), _rate(now)
    change = q - p
    return Check(
        metric=metric,
        kind="share",
        before=p,
        now=q,
        change=f"{100 * change:+.2f} points",
        limit=f"{'at most +' if rises_only else 'within '}{100 * limit:g}",
        verdict="drift" if (change if rises_only else abs(change)) > limit else "ok",
    )


def check_list(metric: str, found: Sequence[str], *, limit: int) -> Check:
    """Holds the number of things that should not be there, named in the note, against a limit."""
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    return Check(
        metric=metric,
        kind="list",
        before=None,
        now=len(found),
        change=str(len(found)),
        limit=f"at most {limit}",
        verdict="drift" if len(found) > limit else "ok",
        note=shown,
    )


def _rate(counts: tuple[int, int]) -> float:
    hits, trials = counts
    return hits / trials if trials else 0.0


def _few(metric: str, kind: Kind, before: float | None, now: float | None) -> Check:
    return Check(
        metric=metric, kind=kind, before=before, now=now, change="", limit="", verdict="few", note="too few events"
    )
