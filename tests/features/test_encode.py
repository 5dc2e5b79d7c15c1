from __future__ import annotations

import datetime
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.calendar import day_start_ms
from features.config import IntensityConfig
from features.encode import (
    context_fields,
    encode_duration,
    encode_gap,
    encode_hour,
    encode_intensity,
    encode_weekday,
    intensity_size,
)
from features.errors import DataError

NAN = math.nan
CONFIG = IntensityConfig(watch_ratio_edges=(0.5, 1.0), watch_ms_edges=(1000, 5000), value_edges=(2.0,))
MILLISECONDS = st.one_of(st.just(NAN), st.sampled_from([0.0, 500.0, 1000.0, 5000.0]), st.integers(0, 10**8).map(float))


def intensity_of(watch: float, duration: float, value: float, config: IntensityConfig) -> int:
    """The data contract, one row at a time."""

    def bucket(x: float, edges: tuple[float, ...]) -> int:
        return sum(x >= edge for edge in edges)

    R, W = len(config.watch_ratio_edges), len(config.watch_ms_edges)
    if not math.isnan(watch):
        known = not math.isnan(duration) and duration > 0
        r = bucket(watch / duration, config.watch_ratio_edges) if known else R + 1
        return 1 + r * (W + 1) + bucket(watch, config.watch_ms_edges)
    if config.value_edges and not math.isnan(value):
        return 1 + (R + 2) * (W + 1) + bucket(value, config.value_edges)
    return 0


@given(st.lists(st.tuples(MILLISECONDS, MILLISECONDS, st.sampled_from([NAN, 0.0, 2.0, 5.0])), max_size=8))
@pytest.mark.parametrize("value_edges", [(), (2.0,)])
def test_intensity_follows_the_contract(value_edges, rows):
    config = CONFIG.model_copy(update={"value_edges": value_edges})
    watch, duration, value = np.array(rows).reshape(-1, 3).T
    codes = encode_intensity(watch, duration, value, config)
    assert codes.dtype == np.uint8
    assert codes.tolist() == [intensity_of(*row, config) for row in rows]
    assert (codes < intensity_size(config)).all()


def test_intensity_tells_a_full_watch_from_a_skip_and_from_the_unknown():
    watch, duration = np.array([10_000.0, 100.0, 10_000.0, NAN]), np.array([10_000.0, 10_000.0, NAN, 10_000.0])
    codes = encode_intensity(watch, duration, np.full(4, NAN), CONFIG)
    assert codes.tolist() == [1 + 2 * 3 + 2, 1, 1 + 3 * 3 + 2, 0]


def test_too_many_edges_are_refused():
    edges = tuple(range(1, 17))
    with pytest.raises(DataError, match=r"features\.intensity: its edges make 307 codes"):
        intensity_size(IntensityConfig(watch_ratio_edges=edges, watch_ms_edges=edges, value_edges=()))


def test_hour_and_weekday_follow_the_local_clock():
    monday = day_start_ms(datetime.date(2022, 3, 28), "Europe/Berlin")  # the day after summer time began
    instants = np.array([monday - 1, monday, monday + 13 * 3_600_000])
    assert encode_hour(instants, "Europe/Berlin").tolist() == [24, 1, 14]
    assert encode_weekday(instants, "Europe/Berlin").tolist() == [7, 1, 1]
    skipped = np.array([monday - 23 * 3_600_000 + hour * 3_600_000 for hour in range(4)])
    assert encode_hour(skipped, "Europe/Berlin").tolist() == [1, 2, 4, 5]


@given(st.lists(MILLISECONDS, max_size=8))
def test_duration_follows_the_contract(durations):
    codes = encode_duration(np.array(durations, np.float64))
    expected = [0 if math.isnan(x) else min(63, 1 + math.floor(4 * math.log2(1 + x / 1000))) for x in durations]
    assert codes.dtype == np.uint8
    assert codes.tolist() == expected


@given(st.lists(st.lists(st.integers(0, 10**11), max_size=5), max_size=4))
def test_gap_looks_at_the_next_older_event_of_the_same_user(users):
    users = [sorted(times, reverse=True) for times in users]
    expected = [
        min(31, 1 + math.floor(math.log2(1 + (newer - older) / 1000))) if older is not None else 0
        for times in users
        for newer, older in zip(times, [*times[1:], None], strict=False)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(times) for times in users])]).astype(np.int64)
    codes = encode_gap(np.array([time for times in users for time in times], np.int64), offsets)
    assert codes.dtype == np.uint8
    assert codes.tolist() == expected


def test_context_sizes_hold_every_code():
    sizes = {field.name: field.size for field in context_fields(("surface", "hour", "weekday", "duration", "gap"), 17)}
    huge = np.array([1e15])
    assert sizes["surface"] == 17
    assert sizes["hour"] == 25
    assert sizes["weekday"] == 8
    assert encode_duration(huge)[0] == sizes["duration"] - 1
    assert encode_gap(np.array([10**15, 0]), np.array([0, 2]))[0] == sizes["gap"] - 1
