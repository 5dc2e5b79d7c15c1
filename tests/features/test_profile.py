"""Profiles: they add up over shards, and count what a plain loop over the events counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.dataset import Columns, Shard
from features.manifest import FileEntry, ShardEntry, schemas_of
from features.profile import HOURS, DayProfile, StreamsProfile, add_counts, add_named, length_classes, profile_shard
from features.shard import ShardTables
from features.spec import FeatureSpec

ZONE = "Asia/Shanghai"
Build = Callable[[pa.Table, int], list[ShardTables]]
WIDE = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def shard_of_tables(tables: ShardTables, spec: FeatureSpec) -> Shard:
    """The tables as if they were mapped files."""
    schemas = schemas_of(spec)
    columns = []
    for table, schema in zip((tables.users, tables.requests), schemas, strict=True):
        made = Columns(Path("memory"), schema, table.num_rows)
        made.__dict__["table"] = table.combine_chunks()
        columns.append(made)
    files = {"users.arrow": FileEntry(bytes=0, sha256="")}
    entry = ShardEntry(
        name="s", files=files, users=0, requests=0, candidates=0, events=0, duplicates=0, stream_events={}
    )
    return Shard(entry, *columns)


def profiles(shards: list[ShardTables], spec: FeatureSpec) -> list[StreamsProfile]:
    return [profile_shard(shard_of_tables(tables, spec), spec, ZONE) for tables in shards]


@WIDE
@given(seed=st.integers(0, 1000), num_rows=st.integers(0, 120), num_shards=st.integers(2, 5))
def test_profiles_add_up_over_shards(
    random_events: Callable[[int, int], pa.Table],
    build_shards: Build,
    spec: FeatureSpec,
    seed: int,
    num_rows: int,
    num_shards: int,
):
    events = random_events(seed, num_rows)
    whole = profiles(build_shards(events, 1), spec)
    parts = profiles(build_shards(events, num_shards), spec)
    empty = StreamsProfile.empty(spec)
    assert reduce(add, parts, empty) == whole[0] + empty == reduce(add, reversed(parts), empty)


@WIDE
@given(seed=st.integers(0, 1000))
def test_counts_are_those_of_a_plain_loop(
    random_events: Callable[[int, int], pa.Table], build_shards: Build, spec: FeatureSpec, seed: int
):
    events = random_events(seed, 90)
    ms = events.column("timestamp_ms").to_numpy() * 40_000  # 0 to 111 hours
    events = events.set_column(2, events.schema.field("timestamp_ms"), pa.array(ms))
    (tables,) = build_shards(events, 1)
    (found,) = profiles([tables], spec)
    rows = {tuple(row[name] for name in events.column_names if name != "source_order") for row in events.to_pylist()}
    days: dict[str, Counter[str]] = {}
    users: dict[str, set[int]] = {}
    for user, _, at, mask, *_ in rows:
        local = np.datetime64(at + 8 * 3_600_000, "ms")
        day = str(local.astype("datetime64[D]"))
        counts = days.setdefault(day, Counter())
        counts["events"] += 1
        counts[f"hour {local.astype('datetime64[h]').astype(int) % 24}"] += 1
        for bit in range(3):
            counts[f"action {bit}"] += mask >> bit & 1
        users.setdefault(day, set()).add(user)
    assert list(found.days) == sorted(days)
    for day, counts in days.items():
        profile = found.days[day]
        assert profile.events == counts["events"] == sum(profile.intensity) == sum(profile.surface)
        assert profile.hours == tuple(counts[f"hour {hour}"] for hour in range(HOURS))
        assert profile.actions == tuple(counts[f"action {bit}"] for bit in range(3))
        assert profile.users == len(users[day])
    seen: set[int] = set()
    for day in sorted(users):
        assert found.days[day].new_users == len(users[day] - seen)
        seen |= users[day]
    assert found.users == len(seen)


def test_gaps_and_unknown_values(make_events: Callable[..., pa.Table], build_shards: Build, spec: FeatureSpec):
    """User and item 6 are out of vocabulary, item 0 has no tag."""
    events = make_events(
        [0, 0, 6],
        [1000, 2000, 3000],
        item_id=[0, 6, 1],
        duration_ms=[None, 5, 5],
        watch_ms=[5, 5, None],
        surface=[None, 9, 1],
    )
    (found,) = profiles(build_shards(events, 1), spec)
    day = found.days["1970-01-01"]
    assert {name: day.nulls[name] for name in ("duration", "intensity", "surface", "tag")} == {
        "duration": 1,
        "intensity": 1,
        "surface": 1,
        "tag": 1,
    }
    assert {name: day.unknown[name] for name in ("item", "user", "surface")} == {"item": 1, "user": 1, "surface": 1}


@given(lengths=st.lists(st.integers(0, 1 << 20)))
def test_length_classes_are_bit_lengths(lengths: list[int]):
    counts = Counter(length.bit_length() for length in lengths)
    assert length_classes(np.array(lengths, np.int64)) == tuple(counts[bits] for bits in range(32))


COUNTS = st.lists(st.integers(0, 99), max_size=5).map(tuple)
NAMED = st.dictionaries(st.sampled_from("abc"), st.integers(0, 99))


@given(COUNTS, COUNTS, COUNTS)
def test_counts_add_in_any_grouping(a: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...]):
    assert add_counts(add_counts(a, b), c) == add_counts(a, add_counts(b, c))
    assert sum(add_counts(a, b)) == sum(a) + sum(b)
    assert add_counts(a, ()) == a


@given(NAMED, NAMED)
def test_named_counts_add_in_any_order(a: dict[str, int], b: dict[str, int]):
    assert add_named(a, b) == add_named(b, a)
    assert sum(add_named(a, b).values()) == sum(a.values()) + sum(b.values())


def test_a_profile_is_closed():
    with pytest.raises(ValueError, match="extra"):
        DayProfile.model_validate({"events": 1, "vents": 2})
