from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.jagged import Jagged, list_array

LARGE = pa.large_list(pa.field("item", pa.int32(), nullable=False))
ROWS = st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=6)


def rows_of(jagged: Jagged) -> list[list[int]]:
    return [jagged.row(index).tolist() for index in range(len(jagged))]


@given(ROWS, st.sampled_from([LARGE, pa.list_(pa.int32())]), st.data())
def test_every_slice_agrees_with_arrow(rows, dtype, data):
    array = pa.array(rows, dtype)
    start = data.draw(st.integers(0, len(rows)))
    part = array.slice(start, data.draw(st.integers(0, len(rows) - start)))
    jagged = Jagged.from_arrow(part, "x")
    assert rows_of(jagged) == part.to_pylist()
    assert jagged.offsets[0] == 0
    assert jagged.offsets.dtype == np.int64
    assert jagged.offsets[-1] == len(jagged.values)
    assert jagged.lengths.tolist() == [len(row) for row in part.to_pylist()]


@given(ROWS)
def test_round_trip(rows):
    array = pa.array(rows, LARGE)
    again = Jagged.from_arrow(array, "x").to_arrow(pa.int32())
    assert again.type == LARGE
    assert again.equals(array)


def test_values_are_views_of_the_mapped_file(tmp_path):
    path = str(tmp_path / "a.arrow")
    table = pa.table({"a": pa.array([[1, 2], [], [3]], LARGE)})
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    allocated = pa.total_allocated_bytes()
    with pa.memory_map(path) as source:
        array = pa.ipc.open_file(source).read_all().column("a").chunk(0)
    jagged = Jagged.from_arrow(array.slice(2), "a")
    assert pa.total_allocated_bytes() == allocated
    assert jagged.values.ctypes.data == array.values.buffers()[1].address + 2 * 4
    assert rows_of(jagged) == [[3]]


@pytest.mark.parametrize(
    ("offsets", "problem"),
    [([1, 3], "start at 1"), ([0, 2, 1, 3], "descend at row 1"), ([0, 2, 9], "end at 9"), ([], "are empty")],
)
def test_offsets_that_do_not_fit_are_refused(offsets, problem):
    with pytest.raises(DataError, match=problem):
        Jagged(np.arange(3), np.array(offsets, np.int64))


def test_arrow_offsets_past_the_values_are_refused():
    offsets = np.array([0, 2, 3], np.int64)
    array = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array([1, 2, 3], pa.int32()))
    offsets[2] = 9  # as damaged memory of a mapped file would be
    with pytest.raises(DataError, match=r"users\.arrow: offsets run from 0 to 9, there are 3 values"):
        Jagged.from_arrow(array, "users.arrow")


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (pa.array([[1], None]), "1 rows are null"),
        (pa.array([[1, None]]), "1 values are null"),
        (pa.array([1, 2]), "expected a list"),
    ],
)
def test_other_arrays_are_refused(array, problem):
    with pytest.raises(DataError, match=f"x: .*{problem}"):
        Jagged.from_arrow(array, "x")


def test_fields_of_lists_of_structs_are_views(tmp_path):
    struct = pa.struct([pa.field("a", pa.int32(), nullable=False), pa.field("b", pa.int8(), nullable=False)])
    dtype = pa.large_list(pa.field("item", struct, nullable=False))
    rows = [[{"a": 1, "b": 2}, {"a": 3, "b": 4}], [], [{"a": 5, "b": 6}]]
    table = pa.table({"c": pa.array(rows, dtype)})
    jagged = Jagged.from_arrow(list_array(table, "c.b"), "c.b")
    assert rows_of(jagged) == [[2, 4], [], [6]]
    assert jagged.values.ctypes.data == table.column("c").chunk(0).values.field("b").buffers()[1].address
    assert rows_of(Jagged.from_arrow(list_array(table.slice(2), "c.a"), "c.a")) == [[5]]
    for missing in ("d", "c.d", "d.a"):
        with pytest.raises(KeyError):
            list_array(table, missing)
