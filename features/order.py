"""The total order of events: users ascending, newest first, ties by source_order; exact duplicates dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.hashing import mix64


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
    events = events.combine_chunks()
    if events.num_rows == 0:
        return Order(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64), 0)
    user_ids, ranks = _ranked(events.column("user_id").chunk(0))
    age = _ages(events.column("timestamp_ms").to_numpy(), max_bits=64 - (len(user_ids) - 1).bit_length())
    key_bits = int(age.max()).bit_length()
    rows, keys = _sort((ranks << np.uint64(key_bits)) | age, events.column("source_order").to_numpy())
    kept = ~_duplicates(events, rows, keys)
    counts = np.bincount((keys[kept] >> np.uint64(key_bits)).astype(np.int64), minlength=len(user_ids))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Order(rows[kept], user_ids, offsets, len(rows) - int(kept.sum()))


def _ranked(user_id: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The distinct users ascending, and each row's position among them; hashing beats sorting all rows."""
    encoded = user_id.dictionary_encode()
    distinct = encoded.dictionary.to_numpy()
    ascending = np.argsort(distinct)
    rank = np.empty(len(distinct), np.uint64)
    rank[ascending] = np.arange(len(distinct), dtype=np.uint64)
    return distinct[ascending], rank[encoded.indices.to_numpy()]


def _ages(timestamp_ms: np.ndarray, max_bits: int) -> np.ndarray:
    """Milliseconds before the newest event, uint64; where those need more bits, ranks in the same order."""
    age = (timestamp_ms.max() - timestamp_ms).astype(np.uint64)
    if int(age.max()).bit_length() > max_bits:
        age = np.unique(age, return_inverse=True)[1].astype(np.uint64)
    return age


def _sort(keys: np.ndarray, source_order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers by ascending key, rows of equal keys by descending source_order; and the keys in that order.

    Event files are in the order of time and source, so reading them backwards usually settles the ties already.
    """
    backwards = np.arange(len(keys) - 1, -1, -1)
    rows, ascending = _sort_stable(keys, backwards)
    source = source_order[rows]
    if np.any((ascending[1:] == ascending[:-1]) & (source[1:] > source[:-1])):
        return _sort_stable(keys, np.argsort(source_order)[::-1])
    return rows, ascending


def _sort_stable(keys: np.ndarray, preference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers by ascending key, equal keys in the order in which `preference` lists the rows; and those keys.

    Sorting values is several times faster than sorting indices, so the preference rides in the key's free low bits.
    """
    keys = keys[preference]
    rank_bits = (len(keys) - 1).bit_length()
    if int(keys.max()).bit_length() + rank_bits > 64:
        ranks = np.argsort(keys, kind="stable")
        return preference[ranks], keys[ranks]
    packed = np.sort((keys << np.uint64(rank_bits)) | np.arange(len(keys), dtype=np.uint64))
    ranks = (packed & np.uint64((1 << rank_bits) - 1)).astype(np.int64)
    return preference[ranks], packed >> np.uint64(rank_bits)


def _duplicates(events: pa.Table, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(N,) bool over the sorted rows: equal in every column to a row with a smaller source_order."""
    duplicate = np.zeros(len(rows), bool)
    suspects = _same_item_and_time(events, rows, keys)
    if len(suspects):
        table = events.take(pa.array(rows[suspects])).combine_chunks()
        duplicate[suspects] = _repeated(table.drop_columns(["source_order"]), keys[suspects])
    return duplicate


def _same_item_and_time(events: pa.Table, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Ascending positions of rows that share user, time and item with another one, and of few besides.

    Whole feed pages share a time, so most rows may have ties; part of one hash leaves the few worth a closer look.
    """
    equal = keys[1:] == keys[:-1]
    tied = np.zeros(len(rows), bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    positions = np.flatnonzero(tied)
    if len(positions) == 0:
        return positions
    items = events.column("item_id").to_numpy()[rows[positions]]
    index_bits = np.uint64((len(positions) - 1).bit_length())
    digest = mix64(keys[positions] ^ mix64(items)) >> index_bits
    packed = np.sort((digest << index_bits) | np.arange(len(positions), dtype=np.uint64))
    same = (packed[1:] ^ packed[:-1]) >> index_bits == 0
    suspect = np.zeros(len(positions), bool)
    suspect[1:] |= same
    suspect[:-1] |= same
    indices = packed[suspect] & ((np.uint64(1) << index_bits) - np.uint64(1))
    return positions[np.sort(indices.astype(np.int64))]


def _repeated(rows: pa.Table, keys: np.ndarray) -> np.ndarray:
    """(N,) bool: equal in key and in every column to a later row; rows of equal keys are adjacent."""
    columns = [keys, *(_plain(rows.column(name)) for name in rows.column_names)]
    # Brings equal rows together; the last sort key, the position, makes the last of them come first.
    order = np.lexsort((-np.arange(len(keys)), *columns[1:], keys))
    same = np.ones(max(len(keys) - 1, 0), bool)
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    repeated = np.zeros(len(keys), bool)
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
