from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.order import newest_first, stable_argsort

ROW = st.tuples(
    st.integers(0, 3),  # user
    st.integers(0, 4),  # time
    st.integers(0, 2),  # item
    st.sampled_from([0, 1]),  # action
    st.sampled_from([None, 0, 7]),  # watch
    st.sampled_from([None, 0.0, -0.5]),  # value
)


@st.composite
def event_rows(draw):
    rows = draw(st.lists(ROW, max_size=30))
    # Times that fit 64 bits with users and rows, with users only, and not even with users.
    stretch = draw(st.sampled_from([1, 1 << 40, 1 << 58, 1 << 61]))
    user_stretch = draw(st.sampled_from([1, 1 << 60, -(1 << 59)]))
    source_order = draw(st.permutations(range(len(rows))))
    return [
        (user * user_stretch, (time - 2) * stretch, *rest, source)
        for (user, time, *rest), source in zip(rows, source_order, strict=True)
    ]


def oracle(rows):
    """Users ascending, newest first, later sources first; of equal rows the earliest source stays."""
    kept: dict[tuple, tuple] = {}
    for row in rows:
        same = kept.setdefault(row[:-1], row)
        kept[row[:-1]] = min(same, row, key=lambda row: row[-1])
    return sorted(kept.values(), key=lambda row: (row[0], -row[1], -row[-1]))


def table_of(make_events, rows):
    user, time, item, action, watch, value, source = zip(*rows, strict=True) if rows else ((),) * 7
    return make_events(user, time, item_id=item, action_mask=action, watch_ms=watch, value=value, source_order=source)


@given(rows=event_rows())
def test_order_is_that_of_plain_sorting(make_events, rows):
    order = newest_first(table_of(make_events, rows))
    expected = oracle(rows)
    assert [rows[index] for index in order.rows] == expected
    assert order.num_duplicates == len(rows) - len(expected)
    assert order.user_ids.tolist() == sorted({row[0] for row in rows})
    users = np.repeat(order.user_ids, np.diff(order.offsets)).tolist()
    assert users == [row[0] for row in expected]


@given(rows=event_rows(), seed=st.integers(0, 99))
def test_order_does_not_depend_on_how_rows_arrive(make_events, rows, seed):
    shuffled = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
    first, second = (newest_first(table_of(make_events, some)) for some in (rows, shuffled))
    assert [rows[index] for index in first.rows] == [shuffled[index] for index in second.rows]


def test_chunked_tables_are_read_whole(make_events):
    parts = [make_events([1, 1], [5, 9], source_order=[0, 1]), make_events([1], [7], source_order=[2])]
    assert newest_first(pa.concat_tables(parts)).rows.tolist() == [1, 2, 0]


@pytest.mark.parametrize("column", ["watch_ms", "duration_ms", "value", "surface"])
def test_null_is_not_zero(make_events, column):
    order = newest_first(make_events([1, 1, 1], [5, 5, 5], **{column: [None, 0, None]}))
    assert order.rows.tolist() == [1, 0]
    assert order.num_duplicates == 1


def test_more_users_than_16_bits_can_number(make_events):
    rng = np.random.default_rng(0)
    users = rng.integers(0, 200_000, 100_000)
    times = np.sort(rng.integers(0, 1000, 100_000))
    table = make_events(users.tolist(), times.tolist(), item_id=range(100_000))
    order = newest_first(table)
    assert len(order.user_ids) > 1 << 16
    assert order.rows.tolist() == np.lexsort((-np.arange(100_000), -times, users)).tolist()
    shuffled = rng.permutation(100_000)
    assert shuffled[newest_first(table.take(pa.array(shuffled))).rows].tolist() == order.rows.tolist()


@given(st.lists(st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31)), max_size=40))
def test_sorting_rows_is_stable(keys):
    order = stable_argsort(np.array(keys, np.int64))
    assert order.tolist() == sorted(range(len(keys)), key=keys.__getitem__)
