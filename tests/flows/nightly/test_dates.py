"""Nights and data dates: exactly one of each, whatever the clocks do."""

from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.nightly.dates import DAY, catch_up, data_date, day_end, days_of, window_days

DATES = st.dates(datetime.date(1990, 1, 2), datetime.date(2060, 1, 1))
ZONES = ("Europe/Berlin", "America/Los_Angeles", "Asia/Shanghai", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC")


@given(
    first=DATES,
    count=st.integers(1, 800),
    time=st.times(),
    zone=st.sampled_from(sorted(available_timezones() & {*ZONES, "Pacific/Apia", "Africa/Casablanca"})),
    lag=st.integers(0, 3),
)
def test_a_schedule_of_one_run_per_utc_day_gives_each_date_once(
    first: datetime.date, count: int, time: datetime.time, zone: str, lag: int
):
    starts = [
        datetime.datetime.combine(first + number * DAY, time, datetime.UTC).astimezone(ZoneInfo(zone))
        for number in range(min(count, 60))
    ]
    dates = [data_date(start, lag) for start in starts]
    assert dates == days_of(first - lag * DAY, first - lag * DAY + (len(starts) - 1) * DAY)


@pytest.mark.parametrize(
    ("date", "zone", "hours"),
    [
        (datetime.date(2024, 3, 31), "Europe/Berlin", 23),
        (datetime.date(2024, 10, 27), "Europe/Berlin", 25),
        (datetime.date(2024, 2, 29), "Europe/Berlin", 24),
        (datetime.date(2024, 4, 7), "Australia/Lord_Howe", 24.5),
        (datetime.date(2018, 11, 4), "America/Sao_Paulo", 23),
        (datetime.date(2024, 12, 31), "UTC", 24),
    ],
)
def test_a_day_ends_where_the_next_begins(date: datetime.date, zone: str, hours: float):
    assert day_end(date, zone) - day_end(date - DAY, zone) == datetime.timedelta(hours=hours)


def test_windows_cross_leap_days_and_month_ends():
    assert window_days(datetime.date(2024, 3, 1), 3) == [
        datetime.date(2024, 2, 28),
        datetime.date(2024, 2, 29),
        datetime.date(2024, 3, 1),
    ]


def test_a_schedule_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        data_date(datetime.datetime(2024, 1, 1), 1)


@given(data=st.data(), newest=DATES)
def test_catching_up_runs_the_newest_missing_date_and_lists_the_rest(data: st.DataObject, newest: datetime.date):
    offsets = st.sets(st.integers(0, 20))
    finished = {newest - number * DAY for number in data.draw(offsets)}
    arrived = {newest - number * DAY for number in data.draw(offsets)}
    todo = catch_up(newest, finished, arrived)
    missing = [day for day in arrived if day not in finished and finished and day >= min(finished)]
    if newest not in finished:
        assert todo.run == newest
        assert set(todo.later) == {day for day in missing if day < newest}
    else:
        assert ({todo.run} - {None}) | set(todo.later) == set(missing)
        assert todo.run == max(missing, default=None)
    assert list(todo.later) == sorted(todo.later)


def test_the_first_night_asks_for_nothing_older():
    newest = datetime.date(2024, 3, 1)
    assert catch_up(newest, (), {newest - DAY}).later == ()
