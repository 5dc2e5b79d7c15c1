"""Batches cut out of memory-mapped shards: a history is a slice, a batch column the concatenation of its slices.

Legend: B requests, N gathered values, F fields, U users, R requests of a shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from features.dataset import Columns, Shard
from features.errors import DataError
from features.spec import CategoricalField, FeatureSpec
from model.batch import Batch, Candidates, UIHStream

Arrays = tuple[np.ndarray, ...]
MIN_MEAN_SLICE = 64


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
    """What one shard contributes to an output: `output[destination] = column[source]`."""

    shard: int
    source: np.ndarray
    destination: np.ndarray


def parts_by_shard(shard_N: np.ndarray, row_N: np.ndarray) -> list[Part]:
    """Splits (shard, row) places by shard."""
    parts = []
    for shard in np.unique(shard_N):
        chosen = np.flatnonzero(shard_N == shard)
        parts.append(Part(int(shard), row_N[chosen], chosen))
    return parts


def pick(columns: Sequence[np.ndarray], shard_N: np.ndarray, row_N: np.ndarray) -> np.ndarray:
    """Looks values up in a column that is given per shard: (N,) of the column's dtype."""
    values_N = np.empty(shard_N.size, columns[0].dtype)
    for part in parts_by_shard(shard_N, row_N):
        values_N[part.destination] = columns[part.shard][part.source]
    return values_N


def ragged_arange(begin_B: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    """Concatenates `begin, begin + 1, ..., begin + length - 1` of every row: (sum of lengths,) int64."""
    offsets_B1 = _offsets(length_B)
    return np.repeat(begin_B - offsets_B1[:-1], length_B) + np.arange(offsets_B1[-1])


def _offsets(length_B: np.ndarray) -> np.ndarray:
    offsets_B1 = np.zeros(length_B.size + 1, np.int64)
    np.cumsum(length_B, out=offsets_B1[1:])
    return offsets_B1


class Spans:
    """B slices `begin : end` of values that lie in several shards, concatenated in batch order.

    Long slices are copied one by one, short ones gathered by index: of 200 tokens each, slices ran twice as fast as the
    index, of 20 tokens a third as fast.
    """

    def __init__(self, shard_B: np.ndarray, begin_B: np.ndarray, end_B: np.ndarray) -> None:
        length_B = end_B - begin_B
        self.offsets = _offsets(length_B)
        self._by_slice = self.offsets[-1] >= MIN_MEAN_SLICE * max(length_B.size, 1)
        if self._by_slice:
            self._slices = list(zip(shard_B.tolist(), begin_B.tolist(), end_B.tolist(), strict=True))
        else:
            self._parts = parts_by_shard(np.repeat(shard_B, length_B), ragged_arange(begin_B, length_B))

    def _copy(self, columns: Sequence[np.ndarray], output_N: np.ndarray) -> None:
        if self._by_slice:
            slices = [columns[shard][begin:end] for shard, begin, end in self._slices]
            np.concatenate(slices, out=output_N, casting="unsafe")
        else:
            for part in self._parts:
                output_N[part.destination] = columns[part.shard][part.source]

    def tensor(self, columns: Sequence[np.ndarray], dtype: type) -> Tensor:
        """One column, given per shard, as a fresh (N,) tensor."""
        output_N = np.empty(self.offsets[-1], dtype)
        self._copy(columns, output_N)
        return torch.from_numpy(output_N)

    def fields(self, columns: Sequence[Arrays]) -> Tensor:
        """F columns as a fresh (N, F) int32 tensor."""
        num_fields = len(columns[0])
        output_NF = np.empty((self.offsets[-1], num_fields), np.int32)
        for field in range(num_fields):
            self._copy([column[field] for column in columns], output_NF[:, field])
        return torch.from_numpy(output_NF)


def gather_batch(
    shards: Sequence[ShardColumns], shard_B: np.ndarray, row_B: np.ndarray, *, max_lengths: Sequence[int | np.ndarray]
) -> Batch:
    """Builds the batch of the requests (shard, row).

    Args:
        shards: the dataset's shards.
        shard_B: (B,) index into `shards`.
        row_B: (B,) row in that shard's requests.
        max_lengths: newest history events to keep, per stream; a number for all requests or (B,) of their own.
    """
    user_row_B = pick([shard.user_row for shard in shards], shard_B, row_B)
    streams = []
    for stream, max_length in enumerate(max_lengths):
        columns = [shard.streams[stream] for shard in shards]
        start_B = pick([shard.starts[stream] for shard in shards], shard_B, row_B)
        begin_B = pick([column.offsets for column in columns], shard_B, user_row_B) + start_B
        end_B = pick([column.offsets for column in columns], shard_B, user_row_B + 1)
        streams.append(_stream(columns, Spans(shard_B, begin_B, np.minimum(end_B, begin_B + max_length))))
    candidates = [shard.candidates for shard in shards]
    begin_B, end_B = (pick([column.offsets for column in candidates], shard_B, row) for row in (row_B, row_B + 1))
    users = Spans(shard_B, user_row_B, user_row_B + 1)
    return Batch(
        request_id_B=torch.from_numpy(pick([shard.request_id for shard in shards], shard_B, row_B)),
        user_id_B=torch.from_numpy(pick([shard.user_id for shard in shards], shard_B, user_row_B)),
        request_ms_B=torch.from_numpy(pick([shard.request_ms for shard in shards], shard_B, row_B)),
        users_BF=users.fields([shard.user_fields for shard in shards]),
        streams=tuple(streams),
        candidates=_candidates(candidates, Spans(shard_B, begin_B, end_B)),
    )


def _stream(columns: Sequence[TokenColumns], spans: Spans) -> UIHStream:
    return UIHStream(
        offsets_B1=torch.from_numpy(spans.offsets),
        lengths=tuple(np.diff(spans.offsets).tolist()),
        items_TF=spans.fields([column.items for column in columns]),
        timestamp_ms_T=spans.tensor([column.extra[0] for column in columns], np.int64),
        action_mask_T=spans.tensor([column.action_mask for column in columns], np.int64),
        intensity_T=spans.tensor([column.extra[1] for column in columns], np.int32),
        contexts_TX=spans.fields([column.contexts for column in columns]),
    )


def _candidates(columns: Sequence[TokenColumns], spans: Spans) -> Candidates:
    return Candidates(
        offsets_B1=torch.from_numpy(spans.offsets),
        items_CF=spans.fields([column.items for column in columns]),
        contexts_CX=spans.fields([column.contexts for column in columns]),
        action_mask_C=spans.tensor([column.action_mask for column in columns], np.int64),
        watch_ratio_C=spans.tensor([column.extra[0] for column in columns], np.float32),
    )
