"""Requests from a Parquet file: checked, what cannot be scored set aside with the reason.

| column | type | |
|---|---|---|
| request_id | int64 | comes back with the scores; once per file |
| user_id | int64 | raw id; a user without events is scored with an empty history |
| request_ms | int64 | UTC milliseconds; events at or after it are not history |
| item_ids | list of int64 | raw ids of the candidates |
| surfaces | list of int, optional | raw surface of each candidate, null where unknown |
| durations_ms | list of numbers, optional | length of each candidate, null where unknown |

Legend: R requests, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import DataError

_IDS = ("request_id", "user_id", "request_ms")


@dataclass(frozen=True)
class Refusal:
    """A request that is not scored, and why; request_id is None where the file has none."""

    row: int
    request_id: int | None
    user_id: int | None
    reason: str


@dataclass(frozen=True)
class RequestTable:
    """Requests that can be scored, in the order of the file, and those that cannot.

    Attributes:
        request_id_R, user_id_R, request_ms_R: (R,) int64.
        offsets_R1: (R + 1,) int64, request r has candidates offsets[r] : offsets[r + 1].
        item_id_C: (C,) int64.
        surface_C, duration_ms_C: (C,) float64, NaN where unknown.
        refused: the others.
    """

    request_id_R: np.ndarray
    user_id_R: np.ndarray
    request_ms_R: np.ndarray
    offsets_R1: np.ndarray
    item_id_C: np.ndarray
    surface_C: np.ndarray
    duration_ms_C: np.ndarray
    refused: tuple[Refusal, ...]

    @property
    def num_requests(self) -> int:
        """R, without the refused ones."""
        return self.request_id_R.size

    def take(self, rows: np.ndarray) -> RequestTable:
        """Some of the requests, without the refused ones."""
        lengths = np.diff(self.offsets_R1)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        chosen = np.repeat(self.offsets_R1[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return RequestTable(
            self.request_id_R[rows],
            self.user_id_R[rows],
            self.request_ms_R[rows],
            offsets,
            self.item_id_C[chosen],
            self.surface_C[chosen],
            self.duration_ms_C[chosen],
            (),
        )


def read_requests(path: Path) -> RequestTable:
    """Reads and checks a file of requests.

    Raises:
        DataError: the file cannot be read, or a column is missing or of another type.
    """
    try:
        table = pq.read_table(path).combine_chunks()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
    columns = {name: _cast(table, name, pa.int64(), path) for name in _IDS}
    item_ids = _cast(table, "item_ids", pa.large_list(pa.int64()), path)
    extra = {
        name: _cast(table, name, pa.large_list(pa.float64()), path) if name in table.column_names else None
        for name in ("surfaces", "durations_ms")
    }
    reasons = _reasons(columns, item_ids, extra)
    keep = pa.array(reasons == "")
    kept = {name: column.filter(keep).to_numpy() for name, column in columns.items()}
    items = item_ids.filter(keep)
    return RequestTable(
        kept["request_id"],
        kept["user_id"],
        kept["request_ms"],
        np.concatenate([[0], np.cumsum(pc.list_value_length(items).to_numpy())]).astype(np.int64),
        items.flatten().to_numpy(),
        _values(extra["surfaces"], keep, items),
        _values(extra["durations_ms"], keep, items),
        _refusals(columns, reasons),
    )


def _cast(table: pa.Table, name: str, dtype: pa.DataType, path: Path) -> pa.Array:
    if name not in table.column_names:
        raise DataError(f"{path}: column '{name}' is missing")
    column = table.column(name)
    try:
        cast = column.cast(dtype)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{path}: column '{name}' has type {column.type}, expected {dtype}") from None
    return cast.combine_chunks() if isinstance(cast, pa.ChunkedArray) else cast


def _reasons(columns: dict[str, pa.Array], item_ids: pa.Array, extra: dict[str, pa.Array | None]) -> np.ndarray:
    """(R,) why a request is refused, '' when it is not; the first reason counts."""
    counts = pc.fill_null(pc.list_value_length(item_ids), 0).to_numpy()
    reasons = np.full(len(item_ids), "", object)

    def refuse(bad: np.ndarray, reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    for name, column in columns.items():
        refuse(_is_null(column), f"{name} is null")
    request_id = pc.fill_null(columns["request_id"], 0).to_numpy()
    first = np.zeros(request_id.size, bool)
    first[np.unique(request_id, return_index=True)[1]] = True
    refuse(~first, "request_id is there twice, the first one counts")
    refuse(pc.fill_null(columns["request_ms"], 0).to_numpy() <= 0, "request_ms is not positive")
    refuse(counts == 0, "no candidates")
    refuse(_has_null_item(item_ids, counts), "an item id is null")
    for name, column in extra.items():
        if column is not None:
            lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
            refuse((lengths != counts) & (lengths >= 0), f"{name} and item_ids differ in length")
    return reasons


def _is_null(column: pa.Array) -> np.ndarray:
    return column.is_null().to_numpy(zero_copy_only=False)


def _has_null_item(item_ids: pa.Array, counts: np.ndarray) -> np.ndarray:
    owner = np.repeat(np.arange(len(item_ids)), counts)
    null = _is_null(item_ids.flatten())
    return np.bincount(owner[null], minlength=len(item_ids)) > 0


def _values(lists: pa.Array | None, keep: pa.Array, items: pa.Array) -> np.ndarray:
    """(C,) float64 of the kept candidates, NaN without the column, where a list is null and where a value is."""
    values_C = np.full(len(items.flatten()), np.nan)
    if lists is not None:
        kept = lists.filter(keep)
        known_C = np.repeat(~_is_null(kept), pc.list_value_length(items).to_numpy())
        values_C[known_C] = pc.fill_null(kept.flatten(), np.nan).to_numpy()
    return values_C


def _refusals(columns: dict[str, pa.Array], reasons: np.ndarray) -> tuple[Refusal, ...]:
    rows = np.flatnonzero(reasons != "").tolist()
    return tuple(
        Refusal(row, columns["request_id"][row].as_py(), columns["user_id"][row].as_py(), reasons[row]) for row in rows
    )
