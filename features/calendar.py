"""Local days and hours of UTC milliseconds, correct across daylight-saving changes."""

from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo

import numpy as np

MS_PER_DAY = 86_400_000

_CLOCK_STEP_MS = 900_000  # today's clocks differ from UTC by whole quarters of an hour
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)


def local_ms(timestamp_ms: np.ndarray, timezone: str) -> np.ndarray:
    """Wall-clock milliseconds since 1970 in `timezone`, int64, same shape; for the years 1 to 9998.

    The clock changes a few times in the range of a log, so finding those changes and adding the offsets between
    them is far cheaper than converting every timestamp.
    """
    if len(timestamp_ms) == 0:
        return timestamp_ms.astype(np.int64)
    changes, offsets = _clock_changes(int(timestamp_ms.min()), int(timestamp_ms.max()), ZoneInfo(timezone))
    if len(changes) == 0:
        return timestamp_ms + offsets[0]
    return timestamp_ms + offsets[np.searchsorted(changes, timestamp_ms, side="right")]


def local_day_index(timestamp_ms: np.ndarray, timezone: str) -> np.ndarray:
    """Local days since 1970-01-01, int64."""
    return local_ms(timestamp_ms, timezone) // MS_PER_DAY


def day_start_ms(day: datetime.date, timezone: str) -> int:
    """UTC milliseconds at which the local day begins, also where the clock skips midnight."""
    midnight = datetime.datetime.combine(day, datetime.time(), ZoneInfo(timezone))
    return (midnight - _EPOCH) // _MILLISECOND


def hour_lengths(day: datetime.date, timezone: str) -> np.ndarray:
    """(24,) int64 milliseconds that each local hour of a day has: an hour's, unless the clock changes."""
    start, end = (day_start_ms(date, timezone) for date in (day, day + datetime.timedelta(days=1)))
    hours = local_ms(np.arange(start, end, _CLOCK_STEP_MS), timezone) % MS_PER_DAY // (MS_PER_DAY // 24)
    return np.bincount(hours, minlength=24) * _CLOCK_STEP_MS


def evaluation_cut_ms(last_day: datetime.date, eval_days: int, timezone: str) -> int:
    """UTC milliseconds at which the last `eval_days` local days begin."""
    return day_start_ms(last_day - datetime.timedelta(days=eval_days - 1), timezone)


def _clock_changes(first_ms: int, last_ms: int, zone: ZoneInfo) -> tuple[np.ndarray, np.ndarray]:
    """Instants in (first, last] at which the offset from UTC changes, (K,), and the offsets between them, (K + 1,)."""
    probes = [*range(first_ms, last_ms, MS_PER_DAY), last_ms]
    offsets = [_offset_ms(probe, zone) for probe in probes]
    changes, kept = [], offsets[:1]
    for day in range(1, len(probes)):
        if offsets[day] != offsets[day - 1]:
            changes.append(_change_between(probes[day - 1], probes[day], zone))
            kept.append(offsets[day])
    return np.array(changes, np.int64), np.array(kept, np.int64)


def _change_between(before_ms: int, after_ms: int, zone: ZoneInfo) -> int:
    """The first instant with the offset of `after_ms`, by bisection."""
    old = _offset_ms(before_ms, zone)
    while after_ms - before_ms > 1:
        middle = (before_ms + after_ms) // 2
        if _offset_ms(middle, zone) == old:
            before_ms = middle
        else:
            after_ms = middle
    return after_ms


def _offset_ms(instant_ms: int, zone: ZoneInfo) -> int:
    local = (_EPOCH + instant_ms * _MILLISECOND).astimezone(zone)
    return (local.replace(tzinfo=datetime.UTC) - _EPOCH) // _MILLISECOND - instant_ms
