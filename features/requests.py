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
        user: (R,) int32 index of the user.
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
    if impression.all():
        events, shown_ms, shown_offsets = np.arange(len(timestamp_ms)), timestamp_ms, offsets
    else:
        events = np.flatnonzero(impression)
        shown_ms = timestamp_ms.take(events)
        shown_offsets = np.concatenate([[0], np.cumsum(impression)]).take(offsets)
    groups = _groups(shown_ms, shown_offsets, gap_ms=config.gap_ms, cut_ms=cut_ms)
    starts = _split_large(groups, len(events), config.max_candidates)
    request_offsets = np.append(starts, len(events))
    oldest = events.take(request_offsets[1:] - 1)
    return Requests(
        events=events,
        offsets=request_offsets,
        user=np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets)).take(oldest),
        request_ms=timestamp_ms.take(oldest),
        history=first_strictly_older(timestamp_ms, offsets).take(oldest),
    )


def _groups(shown_ms: np.ndarray, shown_offsets: np.ndarray, *, gap_ms: int, cut_ms: int) -> np.ndarray:
    """First of each run of impressions that belong together before any split."""
    begins = np.ones(len(shown_ms), bool)
    evaluated = shown_ms >= cut_ms
    np.greater(shown_ms[:-1] - shown_ms[1:], gap_ms, out=begins[1:])
    begins[1:] |= evaluated[:-1] != evaluated[1:]
    begins[shown_offsets[:-1][np.diff(shown_offsets) > 0]] = True
    return np.flatnonzero(begins)


def _split_large(groups: np.ndarray, num_shown: int, max_candidates: int) -> np.ndarray:
    """First candidate of each request: groups cut from their oldest end into runs of `max_candidates`."""
    ends = np.append(groups[1:], num_shown)[: len(groups)]
    sizes = ends - groups
    if sizes.max(initial=0) <= max_candidates:
        return groups
    num_runs = -(-sizes // max_candidates)
    run = np.arange(num_runs.sum()) - np.repeat(np.cumsum(num_runs) - num_runs, num_runs)
    starts = np.repeat(ends, num_runs) - (np.repeat(num_runs, num_runs) - run) * max_candidates
    return np.where(run == 0, np.repeat(groups, num_runs), starts)


def first_strictly_older(timestamp_ms: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(N,) int64: for each event the first index of the same user with a smaller timestamp, else the user's end."""
    num_events = len(timestamp_ms)
    page_begins = np.ones(num_events, bool)
    np.not_equal(timestamp_ms[1:], timestamp_ms[:-1], out=page_begins[1:])
    page_begins[offsets[:-1][np.diff(offsets) > 0]] = True
    starts = np.flatnonzero(page_begins)
    ends = np.append(starts[1:], num_events)[: len(starts)]
    return np.repeat(ends, ends - starts)
