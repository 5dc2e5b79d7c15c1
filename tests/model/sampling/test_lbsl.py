import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.lbsl import LoadBalancer, lbsl_lengths, weighted_order
from model.training.stochastic_length import expected_loads, loads, sampling_length
from model.training.train_config import SamplingConfig

MAX_LENGTH, ALPHA, GAMMA = 4096, 1.7, 1.5
CUT = sampling_length(MAX_LENGTH, ALPHA)


def config(**changes):
    settings = {
        "kind": "lbsl",
        "alpha": ALPHA,
        "gamma": GAMMA,
        "warmup_steps": 3,
        "recalibrate_every": 4,
        "exact_fill": False,
    }
    return SamplingConfig.model_validate(settings | changes)


def literal_algorithm(lengths, order, target, cut, gamma):
    """Algorithm 1, line by line: the untruncated set U and the lengths that follow."""
    untruncated, s = set(), 0.0
    for u in order:
        n = lengths[u]
        if s + (n**gamma - cut**gamma) <= target - len(lengths) * cut**gamma:
            untruncated.add(u)
            s += n**gamma - cut**gamma
    return [n if u in untruncated else min(n, cut) for u, n in enumerate(lengths)]


@st.composite
def batches(draw):
    lengths = draw(st.lists(st.integers(0, MAX_LENGTH), min_size=1, max_size=12))
    order = draw(st.permutations(range(len(lengths))))
    share = draw(st.floats(0, 1.3))
    return lengths, order, share * sum(n**GAMMA for n in lengths)


@given(batches())
def test_keeps_what_the_literal_algorithm_keeps(batch):
    lengths, order, target = batch
    found = lbsl_lengths(np.array(lengths), np.array(order), target=target, cut=CUT, gamma=GAMMA, exact_fill=False)
    assert found.tolist() == literal_algorithm(lengths, order, target, CUT, GAMMA)


@given(batches(), st.booleans())
def test_load_stays_below_the_target_unless_cutting_everything_exceeds_it(batch, exact_fill):
    lengths, order, target = batch
    length_B = np.array(lengths)
    found = lbsl_lengths(length_B, np.array(order), target=target, cut=CUT, gamma=GAMMA, exact_fill=exact_fill)
    least = loads(np.minimum(length_B, CUT), GAMMA).sum()
    # the budget is the sum of floats of up to 3e6: far more exact than one event's share
    assert loads(found, GAMMA).sum() <= max(target, least) * (1 + 1e-9)
    assert (found <= length_B).all()
    assert (found >= np.minimum(length_B, CUT)).all()


@given(batches())
def test_exact_fill_spends_the_budget_on_at_most_one_partial_history(batch):
    lengths, order, target = batch
    length_B, order_B = np.array(lengths), np.array(order)
    coarse = lbsl_lengths(length_B, order_B, target=target, cut=CUT, gamma=GAMMA, exact_fill=False)
    filled = lbsl_lengths(length_B, order_B, target=target, cut=CUT, gamma=GAMMA, exact_fill=True)
    assert (filled >= coarse).all()
    partial = (filled < length_B) & (filled > np.minimum(length_B, CUT))
    assert partial.sum() <= 1
    load, whole = loads(filled, GAMMA).sum(), loads(length_B, GAMMA).sum()
    # The last event that did not fit costs at most the derivative of n^gamma at the longest history.
    one_event = GAMMA * MAX_LENGTH ** (GAMMA - 1)
    overdrawn = target < length_B.size * CUT**GAMMA
    assert overdrawn or load > min(target, whole) - one_event - 1e-6


def test_order_is_a_draw_without_replacement_by_weight():
    """Each of the 6 orders of 3 requests has the probability of drawing one after the other."""
    weights, draws = np.array([0.6, 0.3, 0.1]), 30_000
    rng = np.random.default_rng(11)
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for _ in range(draws):
        counts[tuple(weighted_order(weights, rng.standard_exponential(3)).tolist())] += 1
    for (first, second, _), count in counts.items():
        p = weights[first] * weights[second] / (1 - weights[first])
        # 5 standard deviations of a binomial share: wrong for 6e-7 of all seeds
        assert abs(count / draws - p) < 5 * (p * (1 - p) / draws) ** 0.5


def sum_of(num_ranks):
    """A sum over ranks that run one after the other would need all of them; here every rank is the same."""
    return lambda array: array * num_ranks


def batch_lengths(step, num_requests=8):
    return np.random.default_rng([5, step]).integers(0, MAX_LENGTH + 1, num_requests)


def test_target_is_the_mean_load_of_sl_over_the_steps_since_the_last_one():
    balancer = LoadBalancer(config(), (MAX_LENGTH,), seed=1, num_ranks=2, sum_over_ranks=sum_of(2))
    expected = [
        expected_loads(batch_lengths(step), max_length=MAX_LENGTH, alpha=ALPHA, gamma=GAMMA).sum()
        for step in range(1, 10)
    ]
    targets = []
    for step in range(1, 10):
        balancer.decide((batch_lengths(step),), begin=0, num_requests=16)
        targets.append(balancer.state.target_S[0])
    # warm-up ends after step 3; then every step that 4 divides, over the steps since: 4 alone, then 5..8
    assert targets[:2] == [0, 0]
    assert targets[2] == pytest.approx(np.mean(expected[:3]))
    assert targets[3:7] == pytest.approx([expected[3]] * 4)
    assert targets[7:] == pytest.approx([np.mean(expected[4:8])] * 2)


def test_warm_up_is_plain_sl_and_afterwards_the_load_keeps_to_the_target():
    lbsl = LoadBalancer(config(), (MAX_LENGTH,), seed=1)
    sl = LoadBalancer(config(kind="sl"), (MAX_LENGTH,), seed=1)
    for step in range(1, 12):
        length_B, target = batch_lengths(step), lbsl.state.target_S[0]
        kept = lbsl.decide((length_B,), begin=0, num_requests=8)[0]
        plain = sl.decide((length_B,), begin=0, num_requests=8)[0]
        if step <= 3:
            assert kept.tolist() == plain.tolist()
        else:
            least = loads(np.minimum(length_B, CUT), GAMMA).sum()
            assert loads(kept, GAMMA).sum() <= max(target, least) * (1 + 1e-9)


@given(st.integers(0, 11))
def test_resumed_decisions_are_those_of_the_uninterrupted_run(stop):
    straight = LoadBalancer(config(), (MAX_LENGTH, 0), seed=2)
    resumed = LoadBalancer(config(), (MAX_LENGTH, 0), seed=2)
    nothing = np.zeros(8, np.int64)
    for step in range(1, 13):
        kept = straight.decide((batch_lengths(step), nothing), begin=0, num_requests=8)
        if step > stop:
            again = resumed.decide((batch_lengths(step), nothing), begin=0, num_requests=8)
            assert [part.tolist() for part in kept] == [part.tolist() for part in again]
        elif step == stop:
            resumed.state = resumed.local_state(straight.global_state(straight.state, sum_of(1)))
    assert resumed.state == straight.state or stop == 0


def test_state_goes_over_to_another_number_of_ranks():
    two = LoadBalancer(config(), (MAX_LENGTH,), seed=2, num_ranks=2, sum_over_ranks=sum_of(2))
    for step in range(1, 6):
        two.decide((batch_lengths(step),), begin=0, num_requests=16)
    one = LoadBalancer(config(), (MAX_LENGTH,), seed=2)
    one.state = one.local_state(two.global_state(two.state, sum_of(2)))
    assert one.state.step == two.state.step
    # one rank has the requests of both
    assert one.state.target_S[0] == pytest.approx(2 * two.state.target_S[0])
    assert one.state.load_S[0] == pytest.approx(2 * two.state.load_S[0])


def test_sl_decides_the_same_for_a_request_on_any_number_of_ranks():
    length_B = batch_lengths(1)
    whole = LoadBalancer(config(kind="sl"), (MAX_LENGTH,), seed=4).decide((length_B,), begin=0, num_requests=8)[0]
    parts = [
        LoadBalancer(config(kind="sl"), (MAX_LENGTH,), seed=4, num_ranks=2).decide(
            (length_B[begin:end],), begin=begin, num_requests=8
        )[0]
        for begin, end in ((0, 3), (3, 8))
    ]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_streams_are_balanced_apart():
    balancer = LoadBalancer(config(), (MAX_LENGTH, 64), seed=4)
    short = np.full(8, 64)
    for step in range(1, 5):
        kept = balancer.decide((batch_lengths(step), short), begin=0, num_requests=8)
    alone = expected_loads(short, max_length=64, alpha=ALPHA, gamma=GAMMA).sum()
    assert balancer.state.target_S[1] == pytest.approx(alone)
    assert loads(kept[1], GAMMA).sum() <= alone * (1 + 1e-9)


def test_a_rank_without_requests_takes_part():
    balancer = LoadBalancer(config(), (MAX_LENGTH,), seed=4)
    for _ in range(5):
        assert balancer.decide((np.empty(0, np.int64),), begin=3, num_requests=3)[0].size == 0
    assert balancer.state.step == 5
