from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.config import RequestsConfig
from features.requests import first_strictly_older, form_requests

CUT_MS = 10
CONFIGS = st.builds(RequestsConfig, gap_ms=st.integers(0, 3), max_candidates=st.integers(1, 4))
# Few distinct times, so that pages are common; (time, was it an impression), newest first.
USER = st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=12).map(lambda u: sorted(u, reverse=True))


def oracle(user, config):
    """Requests of one user as (newest-first event indices, index where the history begins), newest first."""
    requests: list[list[int]] = []
    for index in reversed([i for i, (_, shown) in enumerate(user) if shown]):  # in the order of time
        time = user[index][0]
        last = user[requests[-1][-1]][0] if requests else None
        joins = (
            last is not None
            and time - last <= config.gap_ms
            and len(requests[-1]) < config.max_candidates
            and (time < CUT_MS) == (last < CUT_MS)
        )
        if joins:
            requests[-1].append(index)
        else:
            requests.append([index])
    return [
        (list(reversed(request)), sum(time >= user[request[0]][0] for time, _ in user))
        for request in reversed(requests)
    ]


def form(users, config):
    flat = [event for user in users for event in user]
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    times = np.array([time for time, _ in flat], np.int64)
    shown = np.array([was_shown for _, was_shown in flat], bool)
    return times, offsets, form_requests(times, offsets, shown, config=config, cut_ms=CUT_MS)


@given(st.lists(USER, max_size=4), CONFIGS)
def test_requests_are_those_formed_one_user_at_a_time(users, config):
    times, offsets, requests = form(users, config)
    expected = [
        (number, [offsets[number] + index for index in events], offsets[number] + history)
        for number, user in enumerate(users)
        for events, history in oracle(user, config)
    ]
    found = [
        (user, requests.events[start:end].tolist(), history)
        for user, start, end, history in zip(
            requests.user, requests.offsets[:-1], requests.offsets[1:], requests.history, strict=True
        )
    ]
    assert found == expected
    assert requests.request_ms.tolist() == [times[events[-1]] for _, events, _ in expected]


@given(st.lists(USER, max_size=4), CONFIGS)
def test_no_candidate_is_lost_or_seen_by_its_own_request(users, config):
    times, offsets, requests = form(users, config)
    shown = [index for index, (_, shown) in enumerate(event for user in users for event in user) if shown]
    assert sorted(requests.events.tolist()) == shown
    sizes = np.diff(requests.offsets)
    assert ((sizes >= 1) & (sizes <= config.max_candidates)).all()
    ends = offsets[requests.user + 1]
    for number in range(len(requests.user)):
        history = times[requests.history[number] : ends[number]]
        candidates = times[requests.events[requests.offsets[number] : requests.offsets[number + 1]]]
        assert (history < requests.request_ms[number]).all()
        assert requests.request_ms[number] == candidates.min()
        assert len({time >= CUT_MS for time in candidates.tolist()}) == 1
        newer = times[offsets[requests.user[number]] : requests.history[number]]
        assert (newer >= requests.request_ms[number]).all()


@given(USER, CONFIGS, st.lists(st.booleans(), max_size=5))
def test_later_events_do_not_change_what_was_shown(user, config, later):
    _, _, before = form([user], config)
    _, _, after = form([[(30, shown) for shown in later] + user], config)
    moved = len(later)
    old = after.request_ms < 30
    assert (after.history[old] - moved).tolist() == before.history.tolist()
    assert (after.events[after.offsets[:-1][old][0] if old.any() else len(after.events) :] - moved).tolist() == (
        before.events.tolist()
    )


@pytest.mark.parametrize("num_events", [0, 1, 2])
def test_short_users(num_events):
    user = [(2 - index, True) for index in range(num_events)]
    _, _, requests = form([user], RequestsConfig(gap_ms=0, max_candidates=5))
    assert requests.history.tolist() == [index + 1 for index in range(num_events)]


def test_a_page_larger_than_a_request_shares_one_history():
    page = [(7, True)] * 5 + [(6, True)]
    _, _, requests = form([page], RequestsConfig(gap_ms=0, max_candidates=2))
    assert np.diff(requests.offsets).tolist() == [1, 2, 2, 1]
    assert requests.history.tolist() == [5, 5, 5, 6]


def test_a_page_is_never_split_by_the_cut():
    _, _, requests = form([[(CUT_MS, True)] * 3 + [(CUT_MS - 1, True)] * 3], RequestsConfig(gap_ms=5, max_candidates=9))
    assert np.diff(requests.offsets).tolist() == [3, 3]
    assert requests.request_ms.tolist() == [CUT_MS, CUT_MS - 1]


def test_first_strictly_older_stays_within_its_user():
    times = np.array([5, 5, 3, 3, 3, 9])
    assert first_strictly_older(times, np.array([0, 3, 3, 6])).tolist() == [2, 2, 3, 5, 5, 6]
