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
    age = _ages(events.column("timestamp_ms").to_numpy())
    key_bits = int(age.max()).bit_length()
    keys = (ranks << np.uint64(key_bits)) | age
    rows, sorted_keys = _sort(keys)
    rows, kept = _settle_ties(events, rows, sorted_keys)
    counts = np.bincount((sorted_keys[kept] >> np.uint64(key_bits)).astype(np.int64), minlength=len(user_ids))
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


def _ages(timestamp_ms: np.ndarray) -> np.ndarray:
    """Milliseconds before the newest event, uint64."""
    return (timestamp_ms.max() - timestamp_ms).astype(np.uint64)


def _sort(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers by ascending key, and the keys in that order.

    Sorting values is several times faster than sorting indices, so the row rides in the key's free low bits.
    """
    row_bits = max(len(keys) - 1, 1).bit_length()
    if int(keys.max()).bit_length() + row_bits > 64:
        rows = np.argsort(keys, kind="stable")
        return rows, keys[rows]
    packed = np.sort((keys << np.uint64(row_bits)) | np.arange(len(keys), dtype=np.uint64))
    rows = (packed & np.uint64((1 << row_bits) - 1)).astype(np.int64)
    return rows, packed >> np.uint64(row_bits)


def _settle_ties(events: pa.Table, rows: np.ndarray, sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orders rows of one user and millisecond by descending source_order and marks which rows stay."""
    kept = np.ones(len(rows), bool)
    equal = sorted_keys[1:] == sorted_keys[:-1]
    if not equal.any():
        return rows, kept
    tied = np.zeros(len(rows), bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    positions = np.flatnonzero(tied)
    keys = sorted_keys[positions]
    ties = events.take(pa.array(rows[positions])).combine_chunks()
    source_order = ties.column("source_order").to_numpy()
    duplicate = _duplicates(ties.drop_columns(["source_order"]), keys, source_order)
    order = np.lexsort((-source_order, keys))
    rows = rows.copy()
    rows[positions] = rows[positions][order]
    kept[positions] = ~duplicate[order]
    return rows, kept


def _duplicates(ties: pa.Table, keys: np.ndarray, source_order: np.ndarray) -> np.ndarray:
    """(N,) bool, rows equal in every column to one with a smaller source_order."""
    columns = [_plain(ties.column(name)) for name in ties.column_names]
    digest = np.zeros(len(keys), np.uint64)
    for column in columns:
        digest = mix64(digest ^ mix64(column))
    order = np.lexsort((source_order, digest, keys))
    same = (keys[order][1:] == keys[order][:-1]) & (digest[order][1:] == digest[order][:-1])
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    duplicate = np.zeros(len(keys), bool)
    duplicate[order[1:]] = same
    return duplicate


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    """Values as uint64 bit patterns; null is a pattern that no value of these types has."""
    if pa.types.is_floating(column.type):
        bits = pc.fill_null(column, 0.0).to_numpy().astype(np.float64).view(np.uint64)
    else:
        bits = pc.fill_null(column, 0).to_numpy().astype(np.int64).view(np.uint64)
    null = column.is_null().to_numpy()
    return np.where(null, np.uint64(0x8000_0000_0000_0001), bits)
