import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.stochastic_length import (
    expected_loads,
    keep_probability,
    loads,
    sampling_length,
    stochastic_lengths,
)

MAX_LENGTH = 4096
lengths = st.lists(st.integers(0, MAX_LENGTH), min_size=1, max_size=40).map(np.array)
alphas = st.floats(1.01, 2.0)


@given(lengths, alphas, st.integers(0, 2**31))
def test_a_history_stays_whole_or_is_cut_to_the_common_length(length_B, alpha, seed):
    uniform_B = np.random.default_rng(seed).random(length_B.size)
    kept_B = stochastic_lengths(length_B, uniform_B, max_length=MAX_LENGTH, alpha=alpha)
    cut = int(MAX_LENGTH ** (alpha / 2))
    for n, u, kept in zip(length_B.tolist(), uniform_B.tolist(), kept_B.tolist(), strict=True):
        whole = n <= cut or u < MAX_LENGTH**alpha / n**2
        assert kept == (n if whole else cut)


@given(lengths, alphas)
def test_short_histories_are_never_cut_and_longer_ones_stay_whole_less_often(length_B, alpha):
    probability_B = keep_probability(np.sort(length_B), max_length=MAX_LENGTH, alpha=alpha)
    assert (np.diff(probability_B) <= 0).all()
    assert (probability_B[np.sort(length_B) <= sampling_length(MAX_LENGTH, alpha)] == 1).all()
    assert (probability_B > 0).all()


def test_alpha_of_two_cuts_nothing():
    length_B = np.arange(MAX_LENGTH + 1)
    kept_B = stochastic_lengths(length_B, np.full(length_B.size, 1 - 1e-12), max_length=MAX_LENGTH, alpha=2.0)
    assert (kept_B == length_B).all()


def test_share_of_whole_histories_is_the_probability():
    # A binomial share of n draws lies within 5 standard deviations of p but for 6e-7 of all seeds.
    draws, rng = 20_000, np.random.default_rng(3)
    for n in (2000, 3000, 4096):
        kept_B = stochastic_lengths(np.full(draws, n), rng.random(draws), max_length=MAX_LENGTH, alpha=1.7)
        p = MAX_LENGTH**1.7 / n**2
        assert abs((kept_B == n).mean() - p) < 5 * (p * (1 - p) / draws) ** 0.5


@pytest.mark.parametrize(("max_length", "mean"), [(3072, 1114), (8192, 2527), (16384, 4505)])
def test_mean_length_of_full_histories_is_the_papers(max_length, mean):
    """With alpha 1.7: the lengths that explain the paper's Table 6 (1110, 2600, 4400)."""
    p = keep_probability(np.array([max_length]), max_length=max_length, alpha=1.7)[0]
    assert p * max_length + (1 - p) * sampling_length(max_length, 1.7) == pytest.approx(mean, abs=1)


@given(lengths, alphas, st.floats(1.0, 2.0))
def test_expected_load_is_the_mean_over_the_coin(length_B, alpha, gamma):
    p_B = keep_probability(length_B, max_length=MAX_LENGTH, alpha=alpha)
    heads = stochastic_lengths(length_B, np.zeros(length_B.size), max_length=MAX_LENGTH, alpha=alpha)
    tails = stochastic_lengths(length_B, np.ones(length_B.size), max_length=MAX_LENGTH, alpha=alpha)
    expected = p_B * loads(heads, gamma) + (1 - p_B) * loads(tails, gamma)
    found = expected_loads(length_B, max_length=MAX_LENGTH, alpha=alpha, gamma=gamma)
    np.testing.assert_allclose(found, np.where(p_B == 1, loads(length_B, gamma), expected), rtol=1e-12)
