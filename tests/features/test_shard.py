from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.jagged import Jagged, list_array
from features.schema import EVENTS, requests_schema, users_schema
from features.shard import build_shard

SEEDS = st.integers(0, 2**32 - 1)


def lists(table: pa.Table, name: str) -> list[list]:
    return list_array(table, name).to_pylist()


def test_one_user_by_hand(encoder, features, make_events):
    # Two pages before the cut (at 5000), one impression after it; the last row repeats the first.
    events = make_events(
        [3, 3, 3, 3, 3],
        [1000, 1000, 4000, 6000, 1000],
        item_id=[0, 6, 1, 7, 0],
        action_mask=[1, 2, 4, 0, 1],
        watch_ms=[500, None, 6000, 0, 500],
        duration_ms=[1000, 1000, None, 4000, 1000],
        value=[None, 3.0, None, None, None],
        surface=[0, 9, None, 2, 0],
        source_order=[10, 11, 12, 13, 14],
    )
    tables = build_shard(events, encoder)
    assert (tables.num_events, tables.num_duplicates) == (4, 1)
    users = tables.users
    assert users.schema.equals(users_schema(features))
    assert users.to_pylist()[0] == {
        "user_id": 3,
        "user": 5,
        "degree": 2,
        "consumption.item": [0 + 1, 3, 1, 2],  # item 7 and 6 are out of vocabulary
        "consumption.author": [0, 3, 2, 2],  # item 7 has no side row, item 6 is by a0
        "consumption.tag": [0, 3, 2, 0],  # item 0 has no tag
        "consumption.timestamp_ms": [6000, 4000, 1000, 1000],
        "consumption.action_mask": [0, 4, 2, 1],
        "consumption.intensity": [1 + 0, 1 + 3 * 3 + 2, 1 + 4 * 3 + 1, 1 + 1 * 3 + 0],
        "consumption.ctx_surface": [4, 0, 1, 2],
        "consumption.ctx_hour": [9, 9, 9, 9],  # 08:00 in Shanghai on 1970-01-01, a Thursday
        "consumption.ctx_weekday": [4, 4, 4, 4],
        "consumption.ctx_duration": [1 + math.floor(4 * math.log2(5)), 0, 5, 5],
        "consumption.ctx_gap": [2, 3, 1, 0],
        "interaction.item": [3, 1],
        "interaction.author": [3, 2],
        "interaction.tag": [3, 2],
        "interaction.timestamp_ms": [4000, 1000],
        "interaction.action_mask": [4, 2],
        "interaction.intensity": [12, 14],
        "interaction.ctx_surface": [0, 1],
        "interaction.ctx_hour": [9, 9],
        "interaction.ctx_weekday": [4, 4],
        "interaction.ctx_duration": [0, 5],
        "interaction.ctx_gap": [3, 0],
    }
    requests = tables.requests
    assert requests.schema.equals(requests_schema(features))
    assert requests.column("request_id").to_pylist() == [13, 12, 10]
    assert requests.column("user_row").to_pylist() == [0, 0, 0]
    assert requests.column("request_ms").to_pylist() == [6000, 4000, 1000]
    assert requests.column("consumption_start").to_pylist() == [1, 2, 4]
    assert requests.column("interaction_start").to_pylist() == [0, 1, 2]
    assert requests.column("split").to_pylist() == [1, 0, 0]
    assert lists(requests, "candidate.item_id") == [[7], [1], [6, 0]]
    assert lists(requests, "candidate.item") == [[1], [3], [1, 2]]
    assert lists(requests, "candidate.action_mask") == [[0], [4], [2, 1]]
    assert lists(requests, "candidate.ctx_surface") == [[4], [0], [1, 2]]
    ratios = np.array([ratio for row in lists(requests, "candidate.watch_ratio") for ratio in row])
    assert np.array_equal(ratios, [0.0, np.nan, np.nan, 0.5], equal_nan=True)


def test_no_events_give_tables_with_their_schema(encoder, features):
    tables = build_shard(EVENTS.empty_table(), encoder)
    assert (tables.num_events, tables.num_duplicates, tables.users.num_rows, tables.requests.num_rows) == (0, 0, 0, 0)
    assert tables.users.schema.equals(users_schema(features))
    assert tables.requests.schema.equals(requests_schema(features))


@given(seed=SEEDS, num_rows=st.integers(0, 120))
def test_the_order_of_the_rows_does_not_matter(encoder, random_events, seed, num_rows):
    events = random_events(seed, num_rows)
    shuffled = events.take(pa.array(np.random.default_rng(seed).permutation(num_rows)))
    first, second = build_shard(events, encoder), build_shard(shuffled, encoder)
    assert first.users.equals(second.users)
    # Bit by bit, for NaN is not equal to itself.
    assert bytes_of(first.requests) == bytes_of(second.requests)


def bytes_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


@given(seed=SEEDS, num_rows=st.integers(0, 120))
def test_streams_and_requests_keep_their_promises(encoder, random_events, seed, num_rows):
    tables = build_shard(random_events(seed, num_rows), encoder)
    users, requests = tables.users, tables.requests
    assert tables.num_events + tables.num_duplicates == num_rows
    assert sum(map(len, lists(requests, "candidate.item"))) == tables.num_events
    user_rows = requests.column("user_row").to_pylist()
    assert user_rows == sorted(user_rows)
    for stream in encoder.features.streams:
        times = lists(users, f"{stream}.timestamp_ms")
        assert all(row == sorted(row, reverse=True) for row in times)
        for user_row, start, request_ms in zip(
            user_rows,
            requests.column(f"{stream}_start").to_pylist(),
            requests.column("request_ms").to_pylist(),
            strict=True,
        ):
            assert all(time < request_ms for time in times[user_row][start:])
            assert all(time >= request_ms for time in times[user_row][:start])
    assert all(mask & 0b110 for row in lists(users, "interaction.action_mask") for mask in row)
    wanted = sum(bool(mask & 0b110) for row in lists(users, "consumption.action_mask") for mask in row)
    assert sum(map(len, lists(users, "interaction.item"))) == wanted


@given(seed=SEEDS, num_rows=st.integers(1, 80))
def test_what_a_request_sees_does_not_depend_on_later_events(encoder, random_events, seed, num_rows):
    events = random_events(seed, num_rows)
    cut = int(np.median(events.column("timestamp_ms").to_numpy()))
    before = events.filter(pa.array(events.column("timestamp_ms").to_numpy() < cut))
    all_seen = {view["request_id"]: view for view in views(build_shard(events, encoder))}
    # The newest request of a user may still be growing, so it is left out.
    closed = [view for view in views(build_shard(before, encoder)) if view["request_ms"] + 3 * 100 < cut]
    assert all(all_seen[view["request_id"]] == view for view in closed)


def views(tables):
    """Each request with its candidates and its histories, as a model would read them."""
    users = {name: Jagged.from_arrow(tables.users.column(name).combine_chunks(), name) for name in list_names(tables)}
    for request in tables.requests.to_pylist():
        for name, column in users.items():
            start = request[f"{name.split('.')[0]}_start"]
            request[name] = column.row(request["user_row"])[start:].tolist()
        request["user_id"] = tables.users.column("user_id")[request["user_row"]].as_py()
        request = {key: value for key, value in request.items() if not key.endswith("_start")}
        request["candidate"] = [one | {"watch_ratio": repr(one["watch_ratio"])} for one in request["candidate"]]
        del request["user_row"]
        yield request


def list_names(tables):
    return [field.name for field in tables.users.schema if pa.types.is_large_list(field.type)]


@pytest.mark.parametrize("actions", [("like",), ("click", "like"), "all"])
def test_streams_are_what_the_settings_say(encoder, make_events, actions):
    features = encoder.features.model_copy(update={"streams": {"consumption": "all", "interaction": actions}})
    tables = build_shard(
        make_events([1, 1, 1], [3, 2, 1], action_mask=[1, 2, 0]), dataclasses.replace(encoder, features=features)
    )
    masks = {("like",): [2], ("click", "like"): [1, 2], "all": [1, 2, 0]}[actions]
    assert lists(tables.users, "interaction.action_mask") == [masks]
