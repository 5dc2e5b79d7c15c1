from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns import as_float, take_rows

VALUES = st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=12)


@given(VALUES, st.data())
def test_rows_are_those_that_arrow_takes(values, data):
    full = [0 if value is None else value for value in values]
    table = pa.table(
        {
            "nullable": pa.array(values, pa.int32()),
            "full": pa.array(full, pa.int64()),
            "none": pa.nulls(len(values), pa.float32()),
            "text": pa.array([str(value) for value in full], pa.string()),
            "flag": pa.array([value > 0 for value in full], pa.bool_()),
        }
    )
    table = pa.concat_tables([table, table.slice(len(values) // 2)])
    rows = data.draw(st.lists(st.integers(0, max(len(table) - 1, 0)), max_size=20)) if len(table) else []
    taken = take_rows(table, np.array(rows, np.int64))
    assert taken.schema == table.schema
    assert taken.to_pylist() == table.take(pa.array(rows, pa.int64())).to_pylist()


@pytest.mark.parametrize("dtype", [pa.int32(), pa.float32()])
@given(values=VALUES)
def test_null_becomes_nan(dtype, values):
    found = as_float(pa.chunked_array([pa.array(values, dtype)]))
    assert found.dtype == np.float64
    assert np.array_equal(found, np.array([np.nan if value is None else value for value in values]), equal_nan=True)
