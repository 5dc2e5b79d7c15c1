from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.key_counts import COUNTS, add_counts, count_keys, num_partitions

ROWS = st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 5)), st.booleans()), max_size=40)


def counts_of(rows) -> pa.Table:
    return count_keys(pa.array([key for key, _ in rows], pa.int16()), np.array([late for _, late in rows], bool))


def expected(rows) -> list[dict[str, int]]:
    found = Counter((key, late) for key, late in rows if key is not None)
    keys = sorted({key for key, _ in found})
    return [{"key": key, "train": found[key, False], "eval": found[key, True]} for key in keys]


@given(ROWS)
def test_keys_are_counted_on_either_side(rows):
    counts = counts_of(rows)
    assert counts.schema == COUNTS
    assert sorted(counts.to_pylist(), key=lambda row: row["key"]) == expected(rows)


@given(st.lists(ROWS, max_size=4))
def test_counts_of_units_add_up_to_those_of_all_rows(units):
    total = add_counts(pa.concat_tables([COUNTS.empty_table(), *map(counts_of, units)]))
    assert total.to_pylist() == expected([row for rows in units for row in rows])


def test_the_ids_of_many_events_are_split():
    assert num_partitions(0) == num_partitions(1000) == 1
    assert num_partitions(50_000_000) == 12
