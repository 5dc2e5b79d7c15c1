"""Two nights held against each other: which days are new, what is compared with what, and where the clock changes."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.drift import Check, Thresholds
from features.drift_checks import compare, missing_days, new_days
from features.profile import DayProfile, FileRows, Profile, StreamsProfile

LIMITS = Thresholds(
    min_events=1000,
    max_count_factor=1.6,
    max_rate_change=0.3,
    max_psi=0.2,
    min_vanishing_share=0.01,
    max_null_change=0.05,
    max_unknown_change=0.25,
    max_quarantine_change=0.01,
    max_duplicate_change=0.02,
    max_missing_days=0,
    max_missing_hours=0,
    max_vocabulary_factor=1.5,
)
EVERY_HOUR = (100,) * 24


def day(**changes: Any) -> DayProfile:
    plain = {
        "events": 2400,
        "users": 300,
        "new_users": 10,
        "actions": (900, 60),
        "hours": EVERY_HOUR,
        "intensity": (100, 1100, 1200),
        "duration": (0, 1200, 1200),
        "surface": (0, 0, 1400, 1000),
        "nulls": {"duration": 0},
        "unknown": {"item": 100},
    }
    return DayProfile.model_validate(plain | changes)


def profile(days: dict[str, DayProfile], **changes: Any) -> Profile:
    plain = {
        "version": 2,
        "timezone": "Europe/Berlin",
        "window": (min(days), max(days)),
        "streams": StreamsProfile(
            users=500, days=days, lengths={"consumption": (0, 100, 200, 200)}, user_nulls={"age": 5}
        ),
        "rows": {name: found.events for name, found in days.items()},
        "files": {f"{name}.csv": FileRows(read=found.events, quarantined=0) for name, found in days.items()},
        "vocabulary": {"user": 500, "item": 900},
        "actions": ("is_click", "is_like"),
        "surfaces": (1, 4),
        "content_checksum": "0",
    }
    return Profile.model_validate(plain | changes)


def night(last: str, num_days: int = 4, newest: DayProfile | None = None, **changes: Any) -> Profile:
    end = datetime.date.fromisoformat(last)
    dates = [(end - datetime.timedelta(days=back)).isoformat() for back in reversed(range(num_days))]
    days = {date: day() for date in dates}
    return profile(days | {last: newest or day()}, **changes)


def drifted(before: Profile, now: Profile) -> dict[str, Check]:
    return {check.metric: check for check in compare(before, now, LIMITS).failed}


BEFORE = night("2024-02-10")


def test_the_same_night_again_has_no_new_day_and_no_drift():
    found = compare(BEFORE, BEFORE, LIMITS)
    assert found.new_days == ()
    assert found.failed == ()


def test_a_window_that_moves_has_one_new_day():
    found = compare(BEFORE, night("2024-02-11"), LIMITS)
    assert found.new_days == ("2024-02-11",)
    assert {check.verdict for check in found.checks} == {"ok"}


def test_a_vocabulary_or_a_window_alone_makes_no_day_new():
    moved = {
        date: found.model_copy(update={"unknown": {"item": 1}, "new_users": 99}) for date, found in BEFORE.days.items()
    }
    assert new_days(BEFORE, profile(moved)) == []


def test_a_corrected_day_is_new():
    corrected = BEFORE.days | {"2024-02-08": day(actions=(901, 60))}
    assert new_days(BEFORE, profile(corrected)) == ["2024-02-08"]


@pytest.mark.parametrize(
    ("newest", "metrics"),
    [
        ({"actions": (900, 10)}, {"rate of is_like"}),
        ({"events": 1200, "actions": (450, 30)}, {"events a day"}),
        ({"users": 600}, {"users a day"}),
        ({"new_users": 200}, {"new users"}),
        ({"surface": (0, 0, 2400, 0)}, {"surface", "surfaces gone"}),
        ({"nulls": {"duration": 500}}, {"events without duration"}),
        ({"unknown": {"item": 900}}, {"events with unknown item"}),
        ({"hours": (0, *EVERY_HOUR[1:])}, {"hours without events", "hour"}),
        ({"intensity": (100, 2200, 100)}, {"intensity"}),
    ],
)
def test_what_drifts_on_the_new_day_is_named(newest: dict[str, Any], metrics: set[str]):
    assert set(drifted(BEFORE, night("2024-02-11", newest=day(**newest)))) - {"duplicate rows"} == metrics


def test_duplicates_and_quarantine_are_those_of_the_new_day():
    now = night("2024-02-11")
    rows = now.rows | {"2024-02-11": 2500}
    files = dict(now.files) | {"2024-02-11.csv": FileRows(read=2500, quarantined=100)}
    found = drifted(BEFORE, now.model_copy(update={"rows": rows, "files": files}))
    assert set(found) == {"duplicate rows", "quarantined rows"}
    assert found["duplicate rows"].now == pytest.approx(100 / 2500)
    assert found["quarantined rows"].now == pytest.approx(100 / 2500)


def test_a_day_that_is_missing_is_named_once():
    days = {date: day() for date in ("2024-02-08", "2024-02-09", "2024-02-10", "2024-02-12")}
    now = profile(days)
    assert missing_days(now) == ["2024-02-11"]
    assert drifted(BEFORE, now)["days without events"].note == "2024-02-11"
    later = profile({**days, "2024-02-13": day()})
    assert "days without events" not in drifted(now, later)


def test_histories_are_compared_between_windows_of_equally_many_days():
    def shorter(num_days: int) -> Profile:
        tonight = night("2024-02-11", num_days=num_days)
        lengths = {"consumption": (0, 400, 100, 0)}
        return tonight.model_copy(update={"streams": tonight.streams.model_copy(update={"lengths": lengths})})

    assert set(drifted(BEFORE, shorter(4))) == {"history length in consumption"}
    assert drifted(BEFORE, shorter(3)) == {}
    assert drifted(shorter(3), night("2024-02-12")) == {}


def test_surfaces_are_compared_by_their_raw_keys():
    """Another vocabulary gives the same surfaces other rows."""
    swapped = day(surface=(0, 0, 1000, 1400))
    assert drifted(BEFORE, night("2024-02-11", newest=swapped, surfaces=(4, 1))) == {}
    assert "surface" not in {
        check.metric for check in compare(BEFORE, night("2024-02-11", newest=day(surface=())), LIMITS).checks
    }


@pytest.mark.parametrize(
    ("date", "hour", "events"),
    [("2024-03-31", 2, 0), ("2024-10-27", 2, 200)],  # in Berlin clocks go forward and back
)
def test_an_hour_that_the_clock_skips_or_repeats_is_no_drift(date: str, hour: int, events: int):
    before = (datetime.date.fromisoformat(date) - datetime.timedelta(days=1)).isoformat()
    hours = (*EVERY_HOUR[:hour], events, *EVERY_HOUR[hour + 1 :])
    newest = day(events=sum(hours), hours=hours)
    assert set(drifted(night(before), night(date, newest=newest))) == set()
    elsewhere = {"timezone": "Asia/Shanghai"}
    found = drifted(night(before, **elsewhere), night(date, newest=newest, **elsewhere))
    assert ("hours without events" in found) == (events == 0)


def test_fields_that_the_baseline_does_not_know_are_taken_as_none():
    now = night("2024-02-11", newest=day(nulls={"duration": 0, "author": 0}, unknown={"item": 100, "author": 0}))
    assert drifted(BEFORE, now) == {}


@given(
    actions=st.tuples(st.integers(0, 2400), st.integers(0, 2400)),
    hours=st.lists(st.integers(0, 200), min_size=24, max_size=24).filter(any),
    surface=st.lists(st.integers(0, 2400), max_size=4),
)
def test_no_counts_break_the_comparison(actions: tuple[int, int], hours: list[int], surface: list[int]):
    newest = day(actions=actions, hours=tuple(hours), surface=tuple(surface), events=max(sum(hours), *actions))
    found = compare(BEFORE, night("2024-02-11", newest=newest), LIMITS)
    assert len({check.metric for check in found.checks}) == len(found.checks)
    assert {distribution.metric for distribution in found.distributions} <= {check.metric for check in found.checks}
