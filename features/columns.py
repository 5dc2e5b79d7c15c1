"""Arrow columns as NumPy arrays: gathered rows, and values apart from their nulls."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece, copied only if it is not."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows in another order, each column in one piece.

    Args:
        table: any table.
        rows: (N,) int64 row numbers.
    """
    return pa.Table.from_arrays([_take(one_array(column), rows) for column in table.columns], schema=table.schema)


def _take(array: pa.Array, rows: np.ndarray) -> pa.Array:
    # NumPy gathers several times faster than Arrow, but knows no nulls.
    if array.null_count == 0 and pa.types.is_primitive(array.type) and not pa.types.is_boolean(array.type):
        return pa.array(array.to_numpy(zero_copy_only=False).take(rows), array.type)
    if array.null_count == len(array):
        return pa.nulls(len(rows), array.type)
    return array.take(pa.array(rows))


def as_float(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) float64 values of a numeric column, NaN for null; read-only and of no size when all of them are null."""
    array = one_array(column)
    if array.null_count == len(array):
        return np.broadcast_to(np.nan, len(array))
    if array.null_count == 0:
        return array.to_numpy().astype(np.float64)
    return pc.fill_null(array.cast(pa.float64()), np.nan).to_numpy()
