"""Jagged columns as NumPy views of Arrow memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from features.errors import DataError


@dataclass(frozen=True)
class Jagged:
    """B rows of varying length: row b is values[offsets[b] : offsets[b + 1]].

        rows [[3, 1], [], [7]]  ->  values [3, 1, 7], offsets [0, 2, 2, 3]

    Attributes:
        values: (T,) of any fixed-width dtype.
        offsets: (B + 1,) int64, from 0 to T, never descending.

    Raises:
        DataError: the offsets do not describe the values.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        problem = _offsets_problem(self.offsets, len(self.values))
        if problem:
            raise DataError(f"jagged offsets {problem}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(B,) int64."""
        return np.diff(self.offsets)

    def row(self, index: int) -> np.ndarray:
        """One row, a view."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def from_arrow(cls, array: pa.Array, source: str) -> Self:
        """A list array, whole or sliced, without copying its values.

        Args:
            array: a list or large_list array of a fixed-width type, without nulls.
            source: named in errors, such as the file and the column.

        Raises:
            DataError: the array is of another type, has nulls, or its offsets are broken.
        """
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise DataError(f"{source}: has type {array.type}, expected a list")
        if array.null_count:
            raise DataError(f"{source}: {array.null_count} rows are null")
        # `values` ignores a slice while `offsets` follows it, so the values are cut here by the offsets' ends.
        offsets = array.offsets.to_numpy().astype(np.int64, copy=False)
        if len(offsets) == 0:
            offsets = np.zeros(1, np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        problem = _offsets_problem(offsets - first, last - first) or _beyond(first, last, len(array.values))
        if problem:
            raise DataError(f"{source}: offsets {problem}")
        values = array.values.slice(first, last - first)
        if values.null_count:
            raise DataError(f"{source}: {values.null_count} values are null")
        return cls(values.to_numpy(zero_copy_only=True), offsets - first if first else offsets)

    def to_arrow(self, dtype: pa.DataType) -> pa.LargeListArray:
        """The rows as a large_list array of non-null `dtype`; the values are not copied when they have that type."""
        values = pa.array(self.values, type=dtype)
        list_type = pa.large_list(pa.field("item", dtype, nullable=False))
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), values, type=list_type)


def list_array(table: pa.Table, name: str) -> pa.Array:
    """A list column as one array: `stream.item` is a column of its own, `candidate.item` a field of a list of structs.

    Raises:
        KeyError: the table has neither.
    """
    if name in table.column_names:
        return _one_chunk(table.column(name))
    owner, _, field = name.partition(".")
    array = _one_chunk(table.column(owner))
    structs = array.values
    item = structs.type.field(structs.type.get_field_index(field)).with_name("item")
    return pa.LargeListArray.from_arrays(array.offsets, structs.field(field), type=pa.large_list(item))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _beyond(first: int, last: int, num_values: int) -> str | None:
    if first < 0 or last > num_values:
        return f"run from {first} to {last}, there are {num_values} values"
    return None


def _offsets_problem(offsets: np.ndarray, num_values: int) -> str | None:
    if offsets.ndim != 1 or len(offsets) == 0:
        return "are empty"
    if offsets[0] != 0:
        return f"start at {offsets[0]}, not at 0"
    falls = offsets[1:] < offsets[:-1]
    if falls.any():
        return f"descend at row {falls.argmax()}"
    if offsets[-1] != num_values:
        return f"end at {offsets[-1]}, there are {num_values} values"
    return None
