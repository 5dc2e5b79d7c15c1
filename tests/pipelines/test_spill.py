from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.spill import read_spill, write_spill


def table_of(values: list[int | None]) -> pa.Table:
    return pa.table({"value": pa.array(values, pa.int64()), "row": pa.array(range(len(values)), pa.int32())})


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(-9, 9)), st.sampled_from([0, 1, 7, 300])), max_size=20))
@settings(max_examples=40)
def test_every_row_comes_back_in_its_partition_and_in_order(tmp_path_factory, rows):
    table = table_of([value for value, _ in rows])
    partition = np.array([number for _, number in rows], np.int64)
    refs = write_spill(table, partition, tmp_path_factory.mktemp("spill"), "unit")
    assert [ref.partition for ref in refs] == sorted(set(partition.tolist()))
    assert sum(ref.rows for ref in refs) == len(rows)
    for ref in refs:
        expected = table.filter(pa.array(partition == ref.partition))
        assert read_spill([ref]).equals(expected)


def test_chunked_and_sliced_tables_are_spilled_as_what_they_show(tmp_path):
    table = pa.concat_tables([table_of([1, 2, 3]).slice(1), table_of([4, None]).slice(0, 1)])
    (ref,) = write_spill(table, np.zeros(3, np.int32), tmp_path, "unit")
    assert read_spill([ref]).column("value").to_pylist() == [2, 3, 4]


def test_references_may_arrive_once_and_in_any_order(tmp_path):
    parts = {name: [index, index + 10] for index, name in enumerate("dacb")}
    refs = [write_spill(table_of(values), np.zeros(2, np.int8), tmp_path, name)[0] for name, values in parts.items()]
    random.Random(0).shuffle(refs)
    assert read_spill(iter(refs)).column("value").to_pylist() == [1, 11, 3, 13, 2, 12, 0, 10]


def test_a_second_attempt_replaces_the_first_with_the_same_bytes(tmp_path):
    table, partition = table_of([3, 1, 2]), np.array([1, 0, 1])
    first = write_spill(table, partition, tmp_path / "new", "unit")
    content = (tmp_path / "new" / "unit.arrow").read_bytes()
    assert write_spill(table, partition, tmp_path / "new", "unit") == first
    assert (tmp_path / "new" / "unit.arrow").read_bytes() == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["unit.arrow"]


def test_no_rows_give_no_references(tmp_path):
    assert write_spill(table_of([]), np.zeros(0, np.int64), tmp_path, "unit") == []


def test_a_batch_of_another_size_is_noticed(tmp_path):
    (ref,) = write_spill(table_of([1, 2]), np.zeros(2, np.int64), tmp_path, "unit")
    with pytest.raises(RuntimeError, match="batch 0 has 2 rows, 3 were written"):
        read_spill([ref._replace(rows=3)])
