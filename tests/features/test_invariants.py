from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.dataset import Columns, Shard, open_dataset
from features.errors import DataError
from features.invariants import CHECKS, Rules, check_shard, merge_figures
from features.jagged import list_array


@pytest.fixture
def rules(features, spec) -> Rules:
    return Rules(features=features, spec=spec, cut_ms=5_000, num_shards=2)


def with_tables(shard: Shard, users: pa.Table, requests: pa.Table) -> Shard:
    """The shard with other content, as if the files had been written so."""
    parts = []
    for columns, table in ((shard.users, users), (shard.requests, requests)):
        part = Columns(columns.path, table.schema, table.num_rows)
        part.__dict__["table"] = table.combine_chunks()
        parts.append(part)
    return Shard(shard.entry, *parts)


Edit = Callable[[np.ndarray], None]


@pytest.fixture
def edited(with_values) -> Callable[[pa.Table, str, Edit], pa.Table]:
    """Gives the table after a function changed the values of a column in place."""

    def change(table: pa.Table, name: str, edit: Edit) -> pa.Table:
        values = (list_array(table, name).values if "." in name else table.column(name)).to_numpy().copy()
        edit(values)
        return with_values(table, name, values)

    return change


def put(index: int, value: int) -> Callable[[np.ndarray], None]:
    def edit(values: np.ndarray) -> None:
        values[index] = value

    return edit


def add(index: int, value: int) -> Callable[[np.ndarray], None]:
    def edit(values: np.ndarray) -> None:
        values[index] += value

    return edit


def swap(values: np.ndarray) -> None:
    values[[0, 1]] = values[[1, 0]]


def all_equal(values: np.ndarray) -> None:
    values[:] = values[0]


def cut_last(table: pa.Table, name: str) -> pa.Table:
    """The table with the last value of the first row of a list column left out."""
    rows = table.column(name).to_pylist()
    rows[0] = rows[0][:-1]
    return table.set_column(
        table.column_names.index(name), table.schema.field(name), pa.array(rows, table.schema.field(name).type)
    )


def test_a_sound_dataset_passes_every_check(dataset, rules):
    opened = open_dataset(dataset)
    found = [check_shard(shard, index, rules) for index, shard in enumerate(opened.shards)]
    assert set(found[0]) == set(CHECKS)
    for entry, figures in zip(opened.manifest.shards, found, strict=True):
        assert figures["users"] == {"users": entry.users}
        assert figures["candidates"] == {"impressions": entry.events, "candidates": entry.events}
        split = figures["split"]
        assert split["max_train_ms"] < rules.cut_ms <= split["min_eval_ms"]
        assert split["train_candidates"] + split["eval_candidates"] == entry.events
        assert split["train_candidates"] > 0 < split["eval_candidates"]


def test_an_empty_shard_passes_every_check(dataset, rules):
    shard = open_dataset(dataset).shards[0]
    empty = with_tables(shard, shard.users.table.slice(0, 0), shard.requests.table.slice(0, 0))
    assert check_shard(empty, 0, rules)["users"] == {"users": 0}


@pytest.mark.parametrize(
    ("check", "column", "edit", "problem"),
    [
        ("users", "user_id", swap, "is not above the user before"),
        ("users", "user_id", add(0, -1000), "belongs to another shard"),
        ("newest_first", "consumption.timestamp_ms", add(1, 10**6), "consumption.timestamp_ms is not newest first"),
        ("newest_first", "interaction.timestamp_ms", put(0, -1), "interaction.timestamp_ms is not newest first"),
        ("newest_first", "request_ms", put(0, -1), "requests are not newest first"),
        ("newest_first", "user_row", put(0, 1), "requests are not in the order of the users"),
        ("history", "consumption_start", put(0, -1), "consumption_start is outside of the stream"),
        ("history", "interaction_start", put(0, 10**6), "interaction_start is outside of the stream"),
        ("history", "consumption_start", put(0, 0), "holds an event that is not older than the request"),
        ("history", "consumption_start", add(0, 1), "leaves out an older event"),
        ("requests", "request_ms", add(0, 1), "request_ms is not the oldest candidate's time"),
        ("candidates", "candidate.item", swap, "candidate.item and consumption.item differ"),
        ("candidates", "candidate.action_mask", add(3, 1), "candidate.action_mask and consumption.action_mask differ"),
        ("candidates", "candidate.ctx_hour", put(0, 0), "candidate.ctx_hour and consumption.ctx_hour differ"),
        ("split", "split", put(0, 0), "a candidate is on the other side of the evaluation cut"),
        ("split", "split", put(0, 2), "split is neither 0 nor 1"),
        ("streams", "interaction.action_mask", put(0, 1), "interaction holds an event without any of its actions"),
        ("streams", "consumption.action_mask", all_equal, "interaction has not all of the events with its actions"),
        ("codes", "user", put(0, 8), r"user has a code outside of \[0, 8\)"),
        ("codes", "consumption.tag", put(0, 5), r"consumption.tag has a code outside of \[0, 5\)"),
        ("codes", "consumption.item", put(0, -1), "consumption.item has a code outside"),
        ("codes", "interaction.intensity", put(0, 200), "interaction.intensity has a code outside"),
        ("codes", "consumption.ctx_weekday", put(0, 8), "consumption.ctx_weekday has a code outside"),
        ("codes", "candidate.action_mask", put(0, 8), "candidate.action_mask has a code outside"),
    ],
)
def test_each_check_finds_its_fault_and_names_the_user(dataset, rules, edited, check, column, edit, problem):
    shard = open_dataset(dataset).shards[0]
    users, requests = shard.users.table, shard.requests.table
    if column in users.column_names:
        users = edited(users, column, edit)
    else:
        requests = edited(requests, column, edit)
    with pytest.raises(DataError, match=rf"user -?\d+: .*{problem}"):
        CHECKS[check](with_tables(shard, users, requests), 0, rules)


@pytest.mark.parametrize("column", ["interaction.item", "consumption.ctx_gap"])
def test_columns_of_differing_length_are_found(dataset, rules, column):
    shard = open_dataset(dataset).shards[0]
    users, requests = cut_last(shard.users.table, column), shard.requests.table
    with pytest.raises(DataError, match=r"check 'offsets': user \d+: .* differ in length"):
        check_shard(with_tables(shard, users, requests), 0, rules)


def test_a_lost_request_is_found(dataset, rules):
    shard = open_dataset(dataset).shards[0]
    broken = with_tables(shard, shard.users.table, shard.requests.table.slice(1))
    user = shard.users.column("user_id")[0]
    with pytest.raises(DataError, match=rf"check 'candidates': user {user}: has not as many candidates as impressions"):
        check_shard(broken, 0, rules)


@pytest.mark.parametrize(
    ("changes", "problem"), [({"gap_ms": 0}, "over 0 ms apart"), ({"max_candidates": 1}, "over 1 candidates")]
)
def test_requests_beyond_the_settings_are_found(dataset, rules, features, changes, problem):
    requests = features.requests.model_copy(update=changes)
    other = Rules(features.model_copy(update={"requests": requests}), rules.spec, rules.cut_ms, rules.num_shards)
    with pytest.raises(DataError, match=rf"check 'requests': user \d+: .*{problem}"):
        check_shard(open_dataset(dataset).shards[0], 0, other)


def test_requests_of_users_that_do_not_exist_are_found(dataset, rules, edited):
    shard = open_dataset(dataset).shards[0]
    broken = with_tables(shard, shard.users.table, edited(shard.requests.table, "user_row", put(-1, 10**6)))
    with pytest.raises(DataError, match=r"requests\.arrow: user_row is outside of users\.arrow"):
        check_shard(broken, 0, rules)


def test_the_shard_and_its_check_are_named(dataset, rules, edited):
    shard = open_dataset(dataset).shards[0]
    with pytest.raises(DataError) as caught:
        check_shard(with_tables(shard, edited(shard.users.table, "user", put(0, 99)), shard.requests.table), 0, rules)
    assert str(caught.value).startswith(f"{Path(dataset) / 'shard-00000-of-00002'}: check 'codes': user ")


def test_figures_of_shards_are_merged_by_their_names():
    first = {"users": 2, "max_train_ms": 5, "min_eval_ms": 7}
    second = {"users": 3, "max_train_ms": 4, "min_eval_ms": 6, "requests": 1}
    merged = {"users": 5, "max_train_ms": 5, "min_eval_ms": 6, "requests": 1}
    assert merge_figures(first, second) == merged
    assert merge_figures(second, first) == merged
