"""Batches cut out of memory-mapped shards by offset arithmetic: one index per jagged group, one take per column.

Legend: B requests, N gathered values, F fields, U users, R requests of a shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from features.dataset import Columns, Shard
from features.errors import DataError
from features.spec import CategoricalField, FeatureSpec
from model.batch import Batch, Candidates, UIHStream

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class TokenColumns:
    """The parallel columns of a jagged group (a stream, or the candidates) in one shard.

    Attributes:
        offsets: (rows + 1,) int64.
        items: FeatureSpec.item_fields.
        contexts: FeatureSpec.token_contexts or candidate_contexts.
        action_mask: action bits.
        extra: (timestamp_ms, intensity) of a stream, (watch_ratio,) of candidates.
    """

    offsets: np.ndarray
    items: Arrays
    contexts: Arrays
    action_mask: np.ndarray
    extra: Arrays


@dataclass(frozen=True)
class ShardColumns:
    """Everything a batch needs of one shard; the arrays stay memory-mapped."""

    user_id: np.ndarray
    user_fields: Arrays
    streams: tuple[TokenColumns, ...]
    request_id: np.ndarray
    user_row: np.ndarray
    request_ms: np.ndarray
    starts: Arrays
    candidates: TokenColumns


def open_columns(shard: Shard, spec: FeatureSpec) -> ShardColumns:
    """Maps a shard's columns and checks that every request points into them.

    Raises:
        DataError: lists of one group differ in length, or a request points outside its user's stream.
    """
    users, requests = shard.users, shard.requests
    columns = ShardColumns(
        user_id=users.column("user_id"),
        user_fields=tuple(users.column(field.name) for field in spec.user_fields),
        streams=tuple(
            _token_columns(users, stream, spec, spec.token_contexts, extra=("timestamp_ms", "intensity"))
            for stream in spec.streams
        ),
        request_id=requests.column("request_id"),
        user_row=requests.column("user_row"),
        request_ms=requests.column("request_ms"),
        starts=tuple(requests.column(f"{stream}_start") for stream in spec.streams),
        candidates=_token_columns(requests, "candidate", spec, spec.candidate_contexts, extra=("watch_ratio",)),
    )
    _check_pointers(columns, spec, str(requests.path))
    return columns


def _token_columns(
    table: Columns, group: str, spec: FeatureSpec, contexts: Sequence[CategoricalField], extra: tuple[str, ...]
) -> TokenColumns:
    first = table.list(f"{group}.item")

    def values(name: str) -> np.ndarray:
        jagged = table.list(f"{group}.{name}")
        if not np.array_equal(jagged.offsets, first.offsets):
            raise DataError(f"{table.path}: lists of '{group}.{name}' and '{group}.item' differ in length")
        return jagged.values

    return TokenColumns(
        offsets=first.offsets,
        items=tuple(values(field.name) for field in spec.item_fields),
        contexts=tuple(values(f"ctx_{field.name}") for field in contexts),
        action_mask=values("action_mask"),
        extra=tuple(values(name) for name in extra),
    )


def _check_pointers(columns: ShardColumns, spec: FeatureSpec, source: str) -> None:
    def refuse(bad_R: np.ndarray, reason: str) -> None:
        if bad_R.any():
            raise DataError(f"{source}: request {columns.request_id[bad_R.argmax()]} {reason}; run streams again")

    user_row_R = columns.user_row
    refuse((user_row_R < 0) | (user_row_R >= columns.user_id.size), "points at a user that is not there")
    for name, stream, start_R in zip(spec.streams, columns.streams, columns.starts, strict=True):
        length_R = stream.offsets[user_row_R + 1] - stream.offsets[user_row_R]
        refuse((start_R < 0) | (start_R > length_R), f"starts outside its user's stream '{name}'")


@dataclass(frozen=True)
class Part:
    """The values that one shard contributes to a batch: `output[destination] = column[source]`."""

    shard: int
    source: np.ndarray
    destination: np.ndarray | slice


@dataclass(frozen=True)
class Slices:
    """B slices of values that lie in several shards, to be concatenated in batch order."""

    offsets_B1: np.ndarray
    parts: tuple[Part, ...]


def ragged_arange(begin_B: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    """Concatenates `begin, begin + 1, ..., begin + length - 1` of every row: (sum of lengths,) int64."""
    offsets_B1 = _offsets(length_B)
    return np.repeat(begin_B - offsets_B1[:-1], length_B) + np.arange(offsets_B1[-1])


def _offsets(length_B: np.ndarray) -> np.ndarray:
    offsets_B1 = np.zeros(length_B.size + 1, np.int64)
    np.cumsum(length_B, out=offsets_B1[1:])
    return offsets_B1


def plan_slices(shard_B: np.ndarray, begin_B: np.ndarray, length_B: np.ndarray) -> Slices:
    """Turns (shard, begin, length) per request into gather indices per shard."""
    offsets_B1 = _offsets(length_B)
    shards = np.unique(shard_B)
    if shards.size == 1:
        return Slices(offsets_B1, (Part(int(shards[0]), ragged_arange(begin_B, length_B), slice(None)),))
    parts = []
    for shard in shards:
        chosen = np.flatnonzero(shard_B == shard)
        source = ragged_arange(begin_B[chosen], length_B[chosen])
        parts.append(Part(int(shard), source, ragged_arange(offsets_B1[chosen], length_B[chosen])))
    return Slices(offsets_B1, tuple(parts))


def take(slices: Slices, columns: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """Gathers one column (given per shard) into a fresh (N,) array."""
    values_N = np.empty(slices.offsets_B1[-1], dtype)
    for part in slices.parts:
        values_N[part.destination] = columns[part.shard][part.source]
    return values_N


def take_fields(slices: Slices, columns: Sequence[Arrays], dtype: type) -> np.ndarray:
    """Gathers F columns (given per shard) into a fresh (N, F) array."""
    num_fields = len(columns[0])
    values_NF = np.empty((slices.offsets_B1[-1], num_fields), dtype)
    for part in slices.parts:
        for field in range(num_fields):
            values_NF[part.destination, field] = columns[part.shard][field][part.source]
    return values_NF


def gather_batch(
    shards: Sequence[ShardColumns], shard_B: np.ndarray, row_B: np.ndarray, *, max_lengths: tuple[int, ...]
) -> Batch:
    """Builds the batch of the requests (shard, row).

    Args:
        shards: the dataset's shards.
        shard_B: (B,) index into `shards`.
        row_B: (B,) row in that shard's requests.
        max_lengths: newest history events to keep, per stream; 0 leaves the stream empty.
    """
    ones_B = np.ones(row_B.size, np.int64)
    requests = plan_slices(shard_B, row_B, ones_B)
    user_row_B = take(requests, [shard.user_row for shard in shards], np.int64)
    users = plan_slices(shard_B, user_row_B, ones_B)
    streams = []
    for stream, max_length in enumerate(max_lengths):
        columns = [shard.streams[stream] for shard in shards]
        end_B = take(users, [column.offsets[1:] for column in columns], np.int64)
        begin_B = take(users, [column.offsets for column in columns], np.int64)
        begin_B += take(requests, [shard.starts[stream] for shard in shards], np.int64)
        streams.append(_stream(columns, plan_slices(shard_B, begin_B, np.minimum(end_B - begin_B, max_length))))
    return Batch(
        request_id_B=_tensor(take(requests, [shard.request_id for shard in shards], np.int64)),
        user_id_B=_tensor(take(users, [shard.user_id for shard in shards], np.int64)),
        request_ms_B=_tensor(take(requests, [shard.request_ms for shard in shards], np.int64)),
        users_BF=_tensor(take_fields(users, [shard.user_fields for shard in shards], np.int32)),
        streams=tuple(streams),
        candidates=_candidates([shard.candidates for shard in shards], shard_B, row_B, requests),
    )


def _stream(columns: Sequence[TokenColumns], slices: Slices) -> UIHStream:
    return UIHStream(
        offsets_B1=_tensor(slices.offsets_B1),
        items_TF=_tensor(take_fields(slices, [column.items for column in columns], np.int32)),
        timestamp_ms_T=_tensor(take(slices, [column.extra[0] for column in columns], np.int64)),
        action_mask_T=_tensor(take(slices, [column.action_mask for column in columns], np.int64)),
        intensity_T=_tensor(take(slices, [column.extra[1] for column in columns], np.int32)),
        contexts_TX=_tensor(take_fields(slices, [column.contexts for column in columns], np.int32)),
    )


def _candidates(
    columns: Sequence[TokenColumns], shard_B: np.ndarray, row_B: np.ndarray, requests: Slices
) -> Candidates:
    begin_B = take(requests, [column.offsets for column in columns], np.int64)
    end_B = take(requests, [column.offsets[1:] for column in columns], np.int64)
    slices = plan_slices(shard_B, begin_B, end_B - begin_B)
    return Candidates(
        offsets_B1=_tensor(slices.offsets_B1),
        items_CF=_tensor(take_fields(slices, [column.items for column in columns], np.int32)),
        contexts_CX=_tensor(take_fields(slices, [column.contexts for column in columns], np.int32)),
        action_mask_C=_tensor(take(slices, [column.action_mask for column in columns], np.int64)),
        watch_ratio_C=_tensor(take(slices, [column.extra[0] for column in columns], np.float32)),
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)
