"""The total order of events: users ascending, newest first, ties by source_order; exact duplicates dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import one_array, take_rows
from features.hashing import mix64

_MAX_COUNTED_BITS = 32


@dataclass(frozen=True)
class Order:
    """How to read a table of events newest first.

    Attributes:
        rows: (N,) int64 rows of the table in order, duplicates left out.
        user_ids: (U,) int64 ascending.
        offsets: (U + 1,) int64, user u owns rows[offsets[u] : offsets[u + 1]].
        num_duplicates: rows left out.
    """

    rows: np.ndarray
    user_ids: np.ndarray
    offsets: np.ndarray
    num_duplicates: int


def newest_first(events: pa.Table) -> Order:
    """Orders a table with the columns of EVENTS.

    Rows equal in everything but source_order are one event; the smallest source_order stays.
    """
    if events.num_rows == 0:
        return Order(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64), 0)
    user_ids, ranks = _ranked(one_array(events.column("user_id")))
    timestamp_ms, source_order = (
        one_array(events.column(name)).to_numpy() for name in ("timestamp_ms", "source_order")
    )
    rows = _sort(ranks, timestamp_ms, source_order)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(ranks, minlength=len(user_ids)))])
    times = timestamp_ms.take(rows)
    tied = times[1:] == times[:-1]
    tied[offsets[1:-1] - 1] = False  # the last event of a user and the first of the next
    duplicates = _duplicates(events, rows, tied)
    if len(duplicates):
        rows = np.delete(rows, duplicates)
        offsets = offsets - np.searchsorted(duplicates, offsets)
    return Order(rows, user_ids, offsets, len(duplicates))


def _ranked(user_id: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The distinct users ascending, and each row's position among them; hashing beats sorting all rows."""
    encoded = user_id.dictionary_encode()
    distinct = encoded.dictionary.to_numpy()
    ascending = np.argsort(distinct)
    rank = np.empty(len(distinct), np.uint16 if len(distinct) <= 1 << 16 else np.uint32)
    rank[ascending] = np.arange(len(distinct), dtype=rank.dtype)
    return distinct[ascending], rank.take(encoded.indices.to_numpy())


def _sort(ranks: np.ndarray, timestamp_ms: np.ndarray, source_order: np.ndarray) -> np.ndarray:
    """Row numbers by ascending rank, then descending (timestamp_ms, source_order)."""
    # Event files are in the order of time and source, so reading them backwards leaves only the users to be sorted.
    if not _ascends(timestamp_ms, source_order):
        by_source = stable_argsort(source_order)
        newest = by_source.take(stable_argsort(timestamp_ms.take(by_source)))[::-1]
        return newest.take(_stable_order(ranks.take(newest)))
    return len(ranks) - 1 - _stable_order(ranks[::-1])


def _ascends(timestamp_ms: np.ndarray, source_order: np.ndarray) -> bool:
    later = timestamp_ms[1:] > timestamp_ms[:-1]
    if later.all():
        return True
    same = ~later
    return bool(
        np.all(timestamp_ms[1:][same] == timestamp_ms[:-1][same])
        and np.all(source_order[1:][same] > source_order[:-1][same])
    )


def stable_argsort(keys: np.ndarray) -> np.ndarray:
    """(N,) int64 rows by ascending int64 key, rows of equal keys in their order."""
    with np.errstate(over="ignore"):
        above = (keys - keys.min()).view(np.uint64) if len(keys) else keys.view(np.uint64)
    key_bits, row_bits = int(above.max(initial=0)).bit_length(), max(len(keys) - 1, 0).bit_length()
    if key_bits <= _MAX_COUNTED_BITS:
        return _stable_order(above.astype(np.uint32))
    if key_bits + row_bits > 64:
        return np.argsort(above, kind="stable")
    # Sorting values is several times faster than sorting indices, so the row rides in the key's free low bits.
    packed = np.sort((above << np.uint64(row_bits)) | np.arange(len(keys), dtype=np.uint64))
    return (packed & np.uint64((1 << row_bits) - 1)).view(np.int64)


def _stable_order(ranks: np.ndarray) -> np.ndarray:
    """(N,) int64 rows by ascending rank; 16 bits at a time, since numpy sorts those by counting."""
    order = np.argsort(ranks.astype(np.uint16), kind="stable")
    if ranks.dtype != np.uint16:
        high = (ranks >> np.uint32(16)).astype(np.uint16)
        order = order.take(np.argsort(high.take(order), kind="stable"))
    return order


def _duplicates(events: pa.Table, rows: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Ascending positions of ordered rows that equal a row with a smaller source_order in every other column.

    Args:
        events: the table.
        rows: (N,) its rows in order.
        tied: (N - 1,) whether a row has the user and the time of the next one.
    """
    positions = np.flatnonzero(_either(tied))
    if len(positions) == 0:
        return positions
    begins = np.ones(len(positions), bool)
    begins[1:] = ~tied.take(positions[1:] - 1)
    pages = np.cumsum(begins).astype(np.uint64)
    suspects = _same_item_and_page(one_array(events.column("item_id")).to_numpy().take(rows[positions]), pages)
    if len(suspects) == 0:
        return suspects
    table = take_rows(events, rows[positions[suspects]])
    repeated = _repeated(table.drop_columns(["source_order"]), pages[suspects])
    return positions[suspects[repeated]]


def _either(pairs: np.ndarray) -> np.ndarray:
    """(N,) bool which elements are in a marked pair of neighbours; (N - 1,) bool for the pairs."""
    marked = np.zeros(len(pairs) + 1, bool)
    marked[:-1] = pairs
    marked[1:] |= pairs
    return marked


def _same_item_and_page(items: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """Ascending places of rows that share page and item with another one, and of few besides.

    Whole feed pages share a time, so most rows may have ties; part of one hash leaves the few worth a closer look.
    """
    index_bits = np.uint64((len(items) - 1).bit_length())
    digest = mix64(pages ^ mix64(items)) >> index_bits
    packed = np.sort((digest << index_bits) | np.arange(len(items), dtype=np.uint64))
    same = (packed[1:] ^ packed[:-1]) >> index_bits == 0
    return np.sort((packed[_either(same)] & ((np.uint64(1) << index_bits) - np.uint64(1))).astype(np.int64))


def _repeated(rows: pa.Table, pages: np.ndarray) -> np.ndarray:
    """(N,) bool: equal in page and in every column to a later row; rows of equal pages are adjacent."""
    columns = [pages, *(_plain(rows.column(name)) for name in rows.column_names)]
    # Brings equal rows together; the last sort key, the position, makes the last of them come first.
    order = np.lexsort((-np.arange(len(pages)), *columns[1:], pages))
    same = np.ones(max(len(pages) - 1, 0), bool)
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    repeated = np.zeros(len(pages), bool)
    repeated[order[1:]] = same
    return repeated


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    """Values as uint64 bit patterns; null is a pattern that no value of these types has."""
    if pa.types.is_floating(column.type):
        bits = pc.fill_null(column, 0.0).to_numpy().astype(np.float64).view(np.uint64)
    else:
        bits = pc.fill_null(column, 0).to_numpy().astype(np.int64).view(np.uint64)
    null = column.is_null().to_numpy()
    return np.where(null, np.uint64(0x8000_0000_0000_0001), bits)
