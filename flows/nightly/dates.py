"""Which data date a night works on. Pure functions: nights are counted in UTC, which has no daylight saving."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass

from features.calendar import day_start_ms

DAY = datetime.timedelta(days=1)


def data_date(scheduled: datetime.datetime, lag_days: int) -> datetime.date:
    """The data date of a night: `lag_days` before its UTC date, so that a schedule of one run per UTC day gives each
    date once, whatever the clocks of the log's time zone do.

    Args:
        scheduled: when the night was to start, with a time zone.
        lag_days: 1 unless the log's day ends before that UTC day does.
    """
    if scheduled.tzinfo is None:
        raise ValueError("a schedule has a time zone")
    return scheduled.astimezone(datetime.UTC).date() - lag_days * DAY


def day_end(date: datetime.date, timezone: str) -> datetime.datetime:
    """The instant at which a local day is over: 23, 24 or 25 hours after it began."""
    return datetime.datetime.fromtimestamp(day_start_ms(date + DAY, timezone) / 1000, datetime.UTC)


def days_of(first: datetime.date, last: datetime.date) -> list[datetime.date]:
    """All dates from first to last, both included."""
    return [first + number * DAY for number in range((last - first).days + 1)]


def window_days(date: datetime.date, length: int) -> list[datetime.date]:
    """The window that ends with a date, oldest day first."""
    return days_of(date - (length - 1) * DAY, date)


@dataclass(frozen=True)
class CatchUp:
    """What a night does: `run` is the newest date that is missing; `later` are older ones, which it only lists."""

    run: datetime.date | None
    later: tuple[datetime.date, ...]


def catch_up(newest: datetime.date, finished: Collection[datetime.date], arrived: Collection[datetime.date]) -> CatchUp:
    """Decides between tonight's date and those that earlier nights left out.

    Tonight's date is run even when its logs are not there yet: the run waits for them. An older one needs its logs.

    Args:
        newest: tonight's data date.
        finished: dates with a final record.
        arrived: dates that have logs.
    """
    # What is older than the first night was never asked for.
    first = min(finished, default=newest)
    missing = [day for day in days_of(first, newest) if day not in finished and (day == newest or day in arrived)]
    if not missing:
        return CatchUp(None, ())
    return CatchUp(missing[-1], tuple(missing[:-1]))
