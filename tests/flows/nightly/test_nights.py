"""The simulated nights: logs that are a function of the day, and a verdict that sees what must not be."""

from __future__ import annotations

import datetime
from pathlib import Path

import polars as pl
import pytest

from features.calendar import day_start_ms
from flows.nights import LATER_DAYS
from flows.nights_logs import World
from flows.nights_scenario import FIRST_NIGHT, KINDS, NUM_NIGHTS, SCENARIO, TIMEZONE, Simulation
from flows.nights_verdict import EXPECTED, describe, never_worse, vocabulary_growth

from .test_plan import DATE, DAY, record
from .test_trends import REPORT

WORLD = World(7, TIMEZONE, events_per_day=500)


@pytest.mark.parametrize("date", [datetime.date(2024, 2, 29), datetime.date(2024, 3, 31)])
def test_a_days_rows_lie_within_the_local_day_and_are_the_same_every_time(tmp_path: Path, date: datetime.date):
    first = WORLD.write_day(tmp_path, date).read_bytes()
    assert WORLD.write_day(tmp_path, date).read_bytes() == first
    times = pl.read_csv(first)["time_ms"]
    assert day_start_ms(date, TIMEZONE) <= times.min()
    assert times.max() < day_start_ms(date + datetime.timedelta(days=1), TIMEZONE)
    assert len(times) == WORLD.events_per_day


def test_users_and_items_come_and_go_and_all_have_their_row_in_the_side_tables(tmp_path: Path):
    WORLD.write_side_tables(tmp_path)
    last = FIRST_NIGHT + (NUM_NIGHTS + LATER_DAYS) * DAY
    for column, table in (("user_id", "user_features.csv"), ("video_id", "video_features_basic.csv")):
        first, then = (set(pl.read_csv(WORLD.write_day(tmp_path, date))[column]) for date in (FIRST_NIGHT, last))
        assert min(then) > min(first)
        assert max(first) < max(then)
        assert first | then <= set(pl.read_csv(tmp_path / table)[column])


def test_mistakes_are_in_the_logs_that_ask_for_them(tmp_path: Path):
    def rows(**mistakes: object) -> pl.DataFrame:
        path = WORLD.write_day(tmp_path, DATE, **mistakes)  # type: ignore[arg-type]
        return pl.read_csv(path, infer_schema=False)

    good, broken, wrong = rows(), rows(broken=0.3), rows(feed_error=True)
    assert 0.2 < (broken["time_ms"] == "soon").mean() < 0.4
    assert (good["time_ms"] == "soon").sum() == 0
    assert wrong["is_click"].cast(int).mean() > 1.3 * good["is_click"].cast(int).mean()
    assert wrong["tab"].n_unique() == 1 < good["tab"].n_unique()


def test_the_scenario_crosses_a_leap_day_a_months_end_and_a_clock_change():
    last = FIRST_NIGHT + (NUM_NIGHTS - 1) * DAY
    assert datetime.date(2024, 2, 29) == FIRST_NIGHT - 3 * DAY
    assert datetime.date(2024, 3, 31) < last
    assert set(SCENARIO.values()) | {"normal"} == set(KINDS) == set(EXPECTED)


def test_a_promotion_that_made_the_metric_worse_is_seen():
    worse = REPORT.model_copy(update={"metric": 0.91})
    good, bad = record(DATE, "promoted", gate=REPORT), record(DATE, "promoted", gate=worse)
    assert never_worse([good, record(DATE, "kept", gate=worse)]) == []
    assert never_worse([good, bad]) == [f"{DATE}: promoted with mean NE 0.91 against 0.9"]
    assert describe(good, Path())["champion_mean_ne"] == 0.9


def test_what_is_told_of_a_night_names_no_path_of_the_machine(tmp_path: Path):
    night = record(DATE, "failed", reason=f"wait: {tmp_path}/landing: no logs\nmore", earlier=(f"{tmp_path}/x: bad",))
    told = describe(night, tmp_path)
    assert (told["reason"], told["earlier"]) == ("wait: landing: no logs", ["x: bad"])


def test_a_night_whose_model_was_removed_since_has_no_vocabulary_to_look_at(tmp_path: Path):
    night = record(DATE, "kept").model_copy(update={"model": "0" * 16, "tag": f"retrain/{DATE}"})
    assert vocabulary_growth(Simulation(tmp_path, WORLD), [night]) == ([], [])
