"""NE, AUC and their bootstrap against scikit-learn and against plain repetition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from flows.nightly import statistics
from flows.nightly.statistics import Resampling


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits with ties and labels of both classes."""
    size = draw(st.integers(2, 60))
    logits = draw(st.lists(st.integers(-6, 6), min_size=size, max_size=size))
    labels = draw(st.lists(st.booleans(), min_size=size - 2, max_size=size - 2))
    return np.array(logits, np.float32) / 2, np.array([True, False, *labels])


@given(scored())
def test_auc_is_scikit_learns_and_counts_ties_half(data: tuple[np.ndarray, np.ndarray]):
    logits, labels = data
    assert statistics.auc(logits, labels) == pytest.approx(roc_auc_score(labels, logits))


@given(scored())
def test_ne_is_cross_entropy_over_the_entropy_of_the_base_rate(data: tuple[np.ndarray, np.ndarray]):
    logits, labels = data
    rate = labels.mean()
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    probabilities = 1 / (1 + np.exp(-logits.astype(float)))
    assert statistics.ne(logits, labels) == pytest.approx(log_loss(labels, probabilities) / entropy)


@given(scored(), st.integers(1, 5))
def test_a_bootstrap_sample_is_what_repeating_its_users_gives(data: tuple[np.ndarray, np.ndarray], users: int):
    logits, labels = data
    user_id = np.arange(labels.size) % users
    drawn = Resampling.of_users(user_id, 20, seed=1)
    assert drawn.weight_SU.sum(axis=1).tolist() == [len(np.unique(user_id))] * 20
    ne, auc = statistics.ne_samples(logits, labels, drawn), statistics.auc_samples(logits, labels, drawn)
    for sample, weight_U in enumerate(drawn.weight_SU):
        rows = np.repeat(np.arange(labels.size), weight_U[drawn.user_C].astype(int))
        for found, function in ((ne, statistics.ne), (auc, statistics.auc)):
            expected = function(logits[rows], labels[rows])
            assert (math.isnan(expected) and math.isnan(found[sample])) or found[sample] == pytest.approx(expected)


def test_one_class_alone_is_undefined_and_has_no_interval():
    logits, labels = np.zeros(4, np.float32), np.zeros(4, bool)
    assert math.isnan(statistics.ne(logits, labels))
    assert math.isnan(statistics.auc(logits, labels))
    assert math.isnan(statistics.calibration(logits, labels))
    assert statistics.interval(math.nan, np.full(10, np.nan), 0.95) is None
    assert statistics.interval(0.0, np.r_[np.zeros(4), np.full(6, np.nan)], 0.95) is None


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Two equal models on fresh data: the difference is zero, and so it is inside nine times in ten."""
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(100):
        users = np.repeat(np.arange(60), 10)
        taste = rng.normal(0, 1, 60)[users]
        labels = rng.random(600) < 1 / (1 + np.exp(-taste))
        first, second = (taste + rng.normal(0, 0.4, 600) for _ in range(2))
        drawn = Resampling.of_users(users, 100, seed=0)
        samples = statistics.ne_samples(first, labels, drawn) - statistics.ne_samples(second, labels, drawn)
        middle = statistics.ne(first, labels) - statistics.ne(second, labels)
        found = statistics.interval(middle, samples, 0.9)
        assert found is not None
        inside += found.low <= 0 <= found.high
    assert 80 <= inside <= 97
