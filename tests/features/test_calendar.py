from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.calendar import day_start_ms, evaluation_cut_ms, local_day_index, local_ms

ZONES = ["Asia/Shanghai", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"]
EPOCH = datetime.datetime(1970, 1, 1)


def expected_local_ms(instant_ms: int, zone: str) -> int:
    utc = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=instant_ms)
    local = utc.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    return (local - EPOCH) // datetime.timedelta(milliseconds=1)


@given(
    st.lists(st.integers(946_684_800_000, 1_800_000_000_000), max_size=6),
    st.sampled_from(ZONES),
)
def test_local_time_is_the_zones(instants, zone):
    found = local_ms(np.array(instants, np.int64), zone)
    assert found.dtype == np.int64
    assert found.tolist() == [expected_local_ms(instant, zone) for instant in instants]


@pytest.mark.parametrize("zone", ZONES)
def test_local_time_around_every_change_of_the_clock(zone):
    # Every half hour of two years: any change, forward or back, lies between two of them.
    start = day_start_ms(datetime.date(2017, 1, 1), "UTC")
    instants = start + np.arange(2 * 365 * 48) * 1_800_000
    assert local_ms(instants, zone).tolist() == [expected_local_ms(instant, zone) for instant in instants.tolist()]


def test_local_day_changes_at_local_midnight():
    midnight = day_start_ms(datetime.date(2022, 5, 5), "Asia/Shanghai")
    assert midnight == 1_651_680_000_000
    days = local_day_index(np.array([midnight - 1, midnight]), "Asia/Shanghai")
    assert days.tolist() == [(datetime.date(2022, 5, day) - EPOCH.date()).days for day in (4, 5)]


@pytest.mark.parametrize("day", [datetime.date(2018, 11, 4), datetime.date(2018, 2, 18), datetime.date(2018, 7, 1)])
def test_day_starts_where_the_local_day_begins_even_without_a_midnight(day):
    # In Sao Paulo the clock skipped midnight of 2018-11-04 and repeated the last hour of 2018-02-17.
    start = day_start_ms(day, "America/Sao_Paulo")
    index = (day - EPOCH.date()).days
    assert local_day_index(np.array([start - 1, start]), "America/Sao_Paulo").tolist() == [index - 1, index]


def test_the_cut_begins_the_last_days():
    cut = evaluation_cut_ms(datetime.date(2022, 5, 8), 4, "Asia/Shanghai")
    assert cut == day_start_ms(datetime.date(2022, 5, 5), "Asia/Shanghai")
