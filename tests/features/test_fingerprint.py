from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import features.fingerprint
from features.errors import DataError
from features.fingerprint import Fingerprint, fingerprint
from features.jagged import list_array


def of(shards) -> str:
    return sum((fingerprint(tables.users, tables.requests) for tables in shards), Fingerprint()).hex


@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(0, 150), num_shards=st.integers(2, 9))
@settings(max_examples=30)
def test_sharding_does_not_show(build_shards, random_events, seed, num_rows, num_shards):
    events = random_events(seed, num_rows)
    assert of(build_shards(events, num_shards)) == of(build_shards(events, 1))


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_how_many_rows_are_packed_at_once_does_not_show(build_shards, random_events, monkeypatch, rows):
    whole = fingerprint(*tables_of(build_shards, random_events))
    monkeypatch.setattr(features.fingerprint, "_ROWS_PER_BLOCK", rows)
    assert fingerprint(*tables_of(build_shards, random_events)) == whole


def test_it_has_128_bits(build_shards, random_events):
    lanes = fingerprint(*tables_of(build_shards, random_events)).lanes
    assert lanes[0] != lanes[1]
    assert len(Fingerprint(lanes).hex) == 32


def tables_of(build_shards, random_events) -> tuple[pa.Table, pa.Table]:
    (tables,) = build_shards(random_events(5, 150), 1)
    return tables.users, tables.requests


def replaced(table: pa.Table, name: str, array: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), array)


def values_of(table: pa.Table, name: str) -> np.ndarray:
    if name in table.column_names and not pa.types.is_large_list(table.schema.field(name).type):
        return table.column(name).to_numpy().copy()
    return list_array(table, name).values.to_numpy().copy()


@pytest.mark.parametrize("which", ["users", "requests"])
def test_every_column_counts(build_shards, random_events, with_values, column_names, which):
    users, requests = tables_of(build_shards, random_events)
    whole = fingerprint(users, requests)
    table = {"users": users, "requests": requests}[which]
    for name in column_names(table.schema):
        if name == "user_row":
            continue
        values = values_of(table, name)
        values[0] = 1 if values[0] != 1 else 2
        changed = with_values(table, name, values)
        other = {"users": (changed, requests), "requests": (users, changed)}[which]
        assert fingerprint(*other) != whole, name


def test_names_and_types_count(build_shards, random_events):
    users, requests = tables_of(build_shards, random_events)
    whole = fingerprint(users, requests)
    names = ["degree" if name == "user" else "user" if name == "degree" else name for name in users.column_names]
    assert fingerprint(users.rename_columns(names), requests) != whole


def test_order_within_a_list_counts(build_shards, random_events, with_values):
    users, requests = tables_of(build_shards, random_events)
    array = users.column("consumption.item").combine_chunks()
    values = array.values.to_numpy().copy()
    first, second = next((i, i + 1) for i in range(array.offsets[1].as_py() - 1) if values[i] != values[i + 1])
    values[[first, second]] = values[[second, first]]
    assert fingerprint(with_values(users, "consumption.item", values), requests) != fingerprint(users, requests)


def test_how_candidates_are_grouped_counts(build_shards, random_events):
    users, requests = tables_of(build_shards, random_events)
    array = requests.column("candidate").combine_chunks()
    offsets = array.offsets.to_numpy().copy()
    row = next(row for row in range(len(array)) if offsets[row + 1] - offsets[row] > 1)
    offsets[row + 1] -= 1
    moved = pa.LargeListArray.from_arrays(pa.array(offsets), array.values, type=array.type)
    assert fingerprint(users, replaced(requests, "candidate", moved)) != fingerprint(users, requests)


def test_a_zero_is_not_nothing(build_shards, random_events):
    users, requests = tables_of(build_shards, random_events)

    def extended(values: list[int]) -> pa.Table:
        table = users
        for field in users.schema:
            if field.name.startswith("interaction."):
                rows = users.column(field.name).to_pylist()
                table = replaced(table, field.name, pa.array([rows[0] + values, *rows[1:]], field.type))
        return table

    assert len({fingerprint(extended(values), requests).hex for values in ([], [0], [0, 0])}) == 3


def test_columns_of_differing_length_are_refused(build_shards, random_events):
    users, requests = tables_of(build_shards, random_events)
    rows = users.column("interaction.tag").to_pylist()
    longer = pa.array([[*rows[0], 0], *rows[1:]], users.schema.field("interaction.tag").type)
    with pytest.raises(DataError, match="columns of 'interaction' differ in length"):
        fingerprint(replaced(users, "interaction.tag", longer), requests)


def test_order_of_a_users_requests_counts(build_shards, random_events):
    users, requests = tables_of(build_shards, random_events)
    assert requests.column("user_row")[0] == requests.column("user_row")[1]
    order = np.arange(requests.num_rows)
    order[:2] = 1, 0
    assert fingerprint(users, requests.take(pa.array(order))) != fingerprint(users, requests)


def test_whose_request_it_is_counts(build_shards, random_events):
    users, requests = tables_of(build_shards, random_events)
    user_row = requests.column("user_row").to_numpy().copy()
    last_of_first = int((user_row == 0).sum()) - 1
    user_row[last_of_first] = 1
    assert fingerprint(users, replaced(requests, "user_row", pa.array(user_row))) != fingerprint(users, requests)
