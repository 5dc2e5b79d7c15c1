"""Requests: which impressions were shown together, and where each one's history begins.

Everything here works on one shard's events in the order of `features.order`: users ascending, newest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.config import RequestsConfig


@dataclass(frozen=True)
class Requests:
    """Requests newest first within a user, users ascending.

    Attributes:
        events: (C,) int64 event indices of the candidates, newest first within a request.
        offsets: (R + 1,) int64, request r has candidates events[offsets[r] : offsets[r + 1]].
        user: (R,) int64 index of the user.
        request_ms: (R,) int64 time of the oldest candidate.
        history: (R,) int64 index of the first event that is strictly older than request_ms; the user's end if none.
    """

    events: np.ndarray
    offsets: np.ndarray
    user: np.ndarray
    request_ms: np.ndarray
    history: np.ndarray


def form_requests(
    timestamp_ms: np.ndarray,
    offsets: np.ndarray,
    impression: np.ndarray,
    *,
    config: RequestsConfig,
    cut_ms: int,
) -> Requests:
    """Groups consecutive impressions of a user.

    Args:
        timestamp_ms: (N,) int64, newest first within each user.
        offsets: (U + 1,) int64 events of each user.
        impression: (N,) bool, events that were shown as candidates.
        config: the largest gap inside a request and the largest request. Requests fill up in the order of time, so
            what was shown does not change when later events arrive.
        cut_ms: no request has impressions on both sides.
    """
    user_of_event = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    events = np.flatnonzero(impression)
    shown_ms, user = timestamp_ms[events], user_of_event[events]
    group = _groups(shown_ms, user, gap_ms=config.gap_ms, cut_ms=cut_ms)
    starts = _split_large(group, config.max_candidates)
    request_offsets = np.append(starts, len(events)).astype(np.int64)
    oldest = events[request_offsets[1:] - 1]
    return Requests(
        events=events,
        offsets=request_offsets,
        user=user_of_event[oldest],
        request_ms=timestamp_ms[oldest],
        history=first_strictly_older(timestamp_ms, offsets)[oldest],
    )


def _groups(shown_ms: np.ndarray, user: np.ndarray, *, gap_ms: int, cut_ms: int) -> np.ndarray:
    """(C,) ascending group numbers of impressions that belong together before any split."""
    begins = np.ones(len(shown_ms), bool)
    begins[1:] = (
        (user[1:] != user[:-1])
        | (shown_ms[:-1] - shown_ms[1:] > gap_ms)
        | ((shown_ms[:-1] >= cut_ms) != (shown_ms[1:] >= cut_ms))
    )
    return np.cumsum(begins) - 1


def _split_large(group: np.ndarray, max_candidates: int) -> np.ndarray:
    """First candidate of each request: groups cut from their oldest end into runs of `max_candidates`."""
    sizes = np.bincount(group)
    from_oldest = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(group))
    run = from_oldest // max_candidates
    begins = np.ones(len(group), bool)
    begins[1:] = (group[1:] != group[:-1]) | (run[1:] != run[:-1])
    return np.flatnonzero(begins)


def first_strictly_older(timestamp_ms: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(N,) int64: for each event the first index of the same user with a smaller timestamp, else the user's end."""
    num_events = len(timestamp_ms)
    page_begins = np.zeros(num_events, bool)
    page_begins[1:] = timestamp_ms[1:] != timestamp_ms[:-1]
    page_begins[offsets[:-1][np.diff(offsets) > 0]] = True
    if num_events == 0:
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(page_begins)
    ends = np.append(starts[1:], num_events)
    return np.repeat(ends, ends - starts)
