"""Measures of drift: what they must be for any counts, and what they make of plain cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from features.drift import (
    Distribution,
    Thresholds,
    check_distribution,
    check_factor,
    check_list,
    check_rate,
    check_share,
    psi,
    psi_noise,
)

LIMITS = Thresholds(
    min_events=100,
    max_count_factor=1.5,
    max_rate_change=0.3,
    max_psi=0.2,
    min_vanishing_share=0.01,
    max_null_change=0.05,
    max_unknown_change=0.2,
    max_quarantine_change=0.01,
    max_duplicate_change=0.01,
    max_missing_days=0,
    max_missing_hours=0,
    max_vocabulary_factor=1.5,
)
HISTOGRAMS = st.lists(st.integers(0, 10_000), min_size=2, max_size=12).filter(any)


@st.composite
def two_histograms(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    first = draw(HISTOGRAMS)
    second = draw(st.lists(st.integers(0, 10_000), min_size=len(first), max_size=len(first)).filter(any))
    return first, second


@given(pair=two_histograms())
def test_psi_is_symmetric_and_never_negative(pair: tuple[list[int], list[int]]):
    assert psi(*pair) == pytest.approx(psi(*reversed(pair)), abs=1e-12)
    assert psi(*pair) >= -1e-12


@given(counts=HISTOGRAMS, factor=st.integers(1, 1000))
def test_psi_of_equal_shares_is_zero(counts: list[int], factor: int):
    assert psi(counts, [factor * count for count in counts]) == pytest.approx(0, abs=1e-12)


@given(pair=two_histograms(), seed=st.integers(0, 99))
def test_psi_does_not_depend_on_the_order_of_the_classes(pair: tuple[list[int], list[int]], seed: int):
    order = np.random.default_rng(seed).permutation(len(pair[0]))
    assert psi(np.array(pair[0])[order], np.array(pair[1])[order]) == pytest.approx(psi(*pair), abs=1e-9)


@given(pair=two_histograms(), weight=st.floats(0, 1))
def test_psi_grows_on_the_way_from_one_distribution_to_another(pair: tuple[list[int], list[int]], weight: float):
    first, second = (np.array(side) / sum(side) for side in pair)
    assume(first.min() > 0.001)
    assume(second.min() > 0.001)
    between = (1 - weight) * first + weight * second
    assert psi(first, between) <= psi(first, second) + 1e-9


def test_psi_against_its_formula():
    expected = 0.1 * math.log(0.6 / 0.5) + -0.1 * math.log(0.4 / 0.5)
    assert psi([50, 50], [60, 40]) == pytest.approx(expected)


def test_the_noise_is_the_mean_psi_of_two_samples():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(20, 5.0))
    pairs = [(rng.multinomial(5000, probabilities), rng.multinomial(2000, probabilities)) for _ in range(200)]
    assert np.mean([psi(*pair) for pair in pairs]) == pytest.approx(np.mean([psi_noise(*p) for p in pairs]), rel=0.15)


def distribution(before: list[int], now: list[int]) -> Distribution:
    classes = tuple(str(index) for index in range(len(before)))
    return Distribution(metric="hour", classes=classes, before=tuple(before), now=tuple(now))


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ([500, 500], [510, 490], "ok"),
        ([500, 500], [900, 100], "drift"),
        ([900, 100], [1000, 0], "drift"),
        ([50, 49], [99, 1], "few"),
        ([0, 0], [500, 500], "few"),
    ],
)
def test_a_distribution(before: list[int], now: list[int], verdict: str):
    assert check_distribution(distribution(before, now), LIMITS, minimum=100).verdict == verdict


@given(seed=st.integers(0, 10_000))
def test_two_samples_of_one_source_never_drift(seed: int):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(50, 1.0))
    sides = [rng.multinomial(size, probabilities).tolist() for size in (2000, 200)]
    assert check_distribution(distribution(*sides), LIMITS, minimum=100).verdict == "ok"


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [(100, 149, "ok"), (100, 151, "drift"), (151, 100, "drift"), (0, 5, "drift"), (5, 0, "drift"), (0, 0, "ok")],
)
def test_an_amount(before: int, now: int, verdict: str):
    assert check_factor("events a day", before, now, limit=1.5).verdict == verdict


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ((400, 20_000), (200, 20_000), "drift"),  # half of the likes are gone
        ((400, 20_000), (360, 20_000), "ok"),
        ((4, 20_000), (1, 20_000), "ok"),  # as large as chance
        ((0, 20_000), (500, 20_000), "drift"),
        ((0, 20_000), (0, 20_000), "ok"),
        ((90, 99), (1, 20_000), "few"),
    ],
)
def test_a_rate(before: tuple[int, int], now: tuple[int, int], verdict: str):
    assert check_rate("rate of is_like", before, now, limits=LIMITS).verdict == verdict


def test_a_share_may_fall_when_only_a_rise_is_bad():
    assert check_share("duplicate rows", (50, 100), (0, 100), limit=0.1, rises_only=True).verdict == "ok"
    assert check_share("duplicate rows", (0, 100), (50, 100), limit=0.1, rises_only=True).verdict == "drift"
    assert check_share("events without surface", (50, 100), (0, 100), limit=0.1).verdict == "drift"
    assert check_share("duplicate rows", (0, 0), (0, 0), limit=0.0).verdict == "ok"


def test_a_list_names_what_it_found():
    check = check_list("days without events", [f"2022-05-0{day}" for day in range(1, 8)], limit=0)
    assert check.verdict == "drift"
    assert check.note == "2022-05-01, 2022-05-02, 2022-05-03, 2022-05-04, 2022-05-05 and 2 more"
