"""When the synthetic users open their feed and what it shows them.

Legend: E impressions, P pages, S sessions, U users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.sources.synthetic_world import INTEREST_WEIGHTS, Catalogue, SyntheticSettings, Users, offsets_of

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
PAGE_SIZES = np.array([1, 2, 3, 4, 5, 6, 8, 12])
PAGE_SIZE_SHARES = np.array([0.14, 0.14, 0.18, 0.2, 0.14, 0.1, 0.07, 0.03])
MEAN_PAGES_PER_SESSION = 5.0
TABS = np.array([1, 0, 4, 2, 6])
TAB_SHARES = np.array([0.68, 0.1, 0.12, 0.06, 0.04])
# Sessions start between 6 and 24 o'clock, with a small peak at noon and a large one in the evening.
FIRST_HOUR = 6
HOUR_WEIGHTS = np.array([2, 4, 5, 5, 5, 6, 9, 8, 6, 5, 5, 6, 8, 10, 12, 13, 11, 6], float)
FEED_SHARES = {"interest": 0.25, "intent": 0.28, "author": 0.1}


@dataclass(frozen=True)
class Schedule:
    """When who opens which feed.

    Attributes:
        user_P, session_P: owner of each page; pages are sorted by user and time.
        page_ms_P: local milliseconds since the first day's midnight.
        page_E: page of each impression.
        tab_S: index into TABS.
    """

    user_P: np.ndarray
    session_P: np.ndarray
    page_ms_P: np.ndarray
    page_E: np.ndarray
    tab_S: np.ndarray


def run_starts(*keys: np.ndarray) -> np.ndarray:
    """Index at which each row's run of equal keys starts."""
    change = np.ones(len(keys[0]), bool)
    change[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.maximum.accumulate(np.where(change, np.arange(len(change)), 0))


def earlier_in_group(group_E: np.ndarray, page_E: np.ndarray, value_E: np.ndarray) -> np.ndarray:
    """Sum of `value` over the rows of the same group on strictly earlier pages; rows are sorted by page."""
    order = np.argsort(group_E, kind="stable")
    group, page = group_E[order], page_E[order]
    before = np.cumsum(value_E[order]) - value_E[order]
    result = np.empty_like(before)
    result[order] = before[run_starts(group, page)] - before[run_starts(group)]
    return result


def _runs(rng: np.random.Generator, owner: np.ndarray, sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Cuts rows into runs of random sizes that never cross an owner; returns each row's run number."""
    if len(owner) == 0:
        return np.zeros(0, np.int64)
    lengths = rng.choice(sizes, len(owner), p=shares)
    starts = np.zeros(len(owner), bool)
    ends = np.cumsum(lengths)
    starts[ends[ends < len(owner)]] = True
    starts[1:] |= owner[1:] != owner[:-1]
    return np.cumsum(starts)


def make_schedule(users: Users, settings: SyntheticSettings, rng: np.random.Generator) -> Schedule:
    """Lays each user's impressions out over pages, sessions and days."""
    user_E = np.repeat(np.arange(len(users.user_id_U)), users.num_events_U)
    page_E = _runs(rng, user_E, PAGE_SIZES, PAGE_SIZE_SHARES)
    first_E = offsets_of(page_E, page_E[-1] + 1)[:-1]
    user_P = user_E[first_E]
    size_P = np.diff(first_E, append=len(page_E))
    lengths = np.arange(1, 21)
    shares = (1 - 1 / MEAN_PAGES_PER_SESSION) ** lengths
    session_P = _runs(rng, user_P, lengths, shares / shares.sum())
    first_S = offsets_of(session_P, session_P[-1] + 1)[:-1]
    user_S = user_P[first_S]
    # A page is followed by the next one when its items have been looked at.
    dwell_P = (size_P * rng.lognormal(np.log(9_000), 0.5, len(size_P))).astype(np.int64) + 1_500
    into_P = np.cumsum(dwell_P) - dwell_P
    into_P -= into_P[first_S][session_P]
    length_S = into_P[np.r_[first_S[1:] - 1, len(into_P) - 1]] + 10 * 60_000
    start_S = _session_starts(users, user_S, length_S, settings=settings, rng=rng)
    return Schedule(
        user_P=user_P,
        session_P=session_P,
        page_ms_P=start_S[session_P] + into_P,
        page_E=page_E,
        tab_S=rng.choice(len(TABS), len(first_S), p=TAB_SHARES),
    )


def _session_starts(
    users: Users, user_S: np.ndarray, length_S: np.ndarray, *, settings: SyntheticSettings, rng: np.random.Generator
) -> np.ndarray:
    """Start of each session in local ms: a day, an hour by the day's rhythm, no overlap, all inside the logged days."""
    join = users.join_day_U[user_S]
    day = join + np.floor(rng.random(len(user_S)) * (settings.num_days - join)).astype(np.int64)
    hour = rng.choice(len(HOUR_WEIGHTS), len(user_S), p=HOUR_WEIGHTS / HOUR_WEIGHTS.sum()) + rng.random(len(user_S))
    hour = FIRST_HOUR + (hour + users.phase_U[user_S]) % len(HOUR_WEIGHTS)
    wanted = day * DAY_MS + (hour * HOUR_MS).astype(np.int64)
    wanted = wanted[np.lexsort((wanted, user_S))]
    # start[i] = max(wanted[i], end[i - 1]) within a user; less the lengths before it, that is a running maximum.
    before = np.cumsum(length_S) - length_S
    apart = user_S * (1 << 42)
    start = np.maximum.accumulate(wanted - before + before[run_starts(user_S)] + apart) - apart
    start += before - before[run_starts(user_S)]
    ends = np.zeros(len(users.user_id_U), np.int64)
    np.maximum.at(ends, user_S, start + length_S)
    return start - np.maximum(ends - settings.num_days * DAY_MS, 0)[user_S]


def draw_intents(
    users: Users, schedule: Schedule, num_topics: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Topic (-1 = none) and strength of the intent on each page: bursts that fade, most end with their session."""
    user_P, session_P = schedule.user_P, schedule.session_P
    num_pages = len(user_P)
    new_session = np.r_[True, session_P[1:] != session_P[:-1]]
    new_user = np.r_[True, user_P[1:] != user_P[:-1]]
    long_pause = np.r_[True, np.diff(schedule.page_ms_P) > 6 * HOUR_MS]
    uniform = rng.random(num_pages)
    change = new_user | (uniform < np.where(new_session, np.where(long_pause, 0.6, 0.25), 0.05))
    burst_P = np.cumsum(change) - 1
    age = np.arange(num_pages) - np.flatnonzero(change)[burst_P]
    owner = user_P[change]
    own = users.interests_U3[owner, rng.choice(len(INTEREST_WEIGHTS), len(owner), p=INTEREST_WEIGHTS)]
    topic = np.where(rng.random(len(owner)) < 0.2, own, rng.integers(0, num_topics, len(owner)))
    topic = np.where(rng.random(len(owner)) < 0.25, -1, topic)
    return topic[burst_P], 0.3 + 0.7 * np.exp(-age / 15.0)


def draw_items(
    users: Users, catalogue: Catalogue, schedule: Schedule, *, intent_P: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The feed: the popular, the user's interests and intents, liked authors; no item twice on a page."""
    page, num_items = schedule.page_E, len(catalogue.video_id_N)
    user = schedule.user_P[page]
    day = schedule.page_ms_P[page] // DAY_MS
    bounds = np.cumsum(list(FEED_SHARES.values()))
    kind = np.searchsorted(bounds, rng.random(len(page)), side="right")
    interest = users.interests_U3[user, rng.choice(len(INTEREST_WEIGHTS), len(page), p=INTEREST_WEIGHTS)]
    intent = intent_P[page]
    topic = np.where(kind == 0, interest, np.where(kind == 1, intent, -1))
    low = np.where(topic >= 0, catalogue.topic_offsets[topic], 0)
    high = np.where(topic >= 0, catalogue.topic_offsets[topic + 1], num_items)
    author = users.liked_authors_U3[user, rng.integers(0, users.liked_authors_U3.shape[1], len(page))]
    low = np.where(kind == 2, catalogue.author_offsets[author], low)
    high = np.where(kind == 2, catalogue.author_offsets[author + 1], high)
    item = catalogue.draw(day, low, high, rng.random(len(page)))
    while True:
        pair = page * num_items + item
        order = np.argsort(pair, kind="stable")
        again = order[1:][pair[order][1:] == pair[order][:-1]]
        if len(again) == 0:
            return item
        everything = np.full(len(again), num_items)
        item[again] = catalogue.draw(day[again], np.zeros_like(everything), everything, rng.random(len(again)))
