"""What a scoring job reads: the evaluation requests of a streams dataset, or a Parquet file of requests against it.

Either way a request becomes a row of a `ShardColumns`, so that histories are cut out of mapped files as for training.

Legend: R requests, C candidates, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from features.dataset import Shard, StreamsDataset
from features.hashing import shard_of
from model.batch import Batch
from model.gather import ShardColumns, TokenColumns, gather_batch, open_columns
from model.serving.score_encode import CandidateEncoder, RawCandidates, UserCodes
from model.serving.score_requests import RequestTable
from model.training.sampler import EVALUATION


@dataclass(frozen=True)
class SourceShard:
    """The requests of one output shard.

    Attributes:
        name: of the shard.
        columns: where the requests and their histories lie.
        rows: (R,) requests to score, in the order of the output.
        item_id_C: raw ids of all candidates of `columns`.
    """

    name: str
    columns: ShardColumns
    rows: np.ndarray
    item_id_C: np.ndarray


def evaluation_shard(shard: Shard, dataset: StreamsDataset) -> SourceShard:
    """The evaluation window's requests of a shard of the dataset."""
    columns = open_columns(shard, dataset.manifest.spec)
    rows = np.flatnonzero(shard.requests.column("split") == EVALUATION)
    return SourceShard(shard.entry.name, columns, rows, shard.requests.list("candidate.item_id").values)


def file_shard(
    number: int, dataset: StreamsDataset, requests: RequestTable, *, encoder: CandidateEncoder
) -> SourceShard:
    """The requests of a file whose users belong to a shard of the dataset, in the order of the file."""
    shard, spec = dataset.shards[number], dataset.manifest.spec
    mine = requests.take(np.flatnonzero(shard_of(requests.user_id_R, len(dataset.shards)) == number))
    columns = _with_unknown_users(open_columns(shard, spec), mine.user_id_R, num_fields=len(spec.user_fields))
    user_row_R = np.searchsorted(columns.user_id, mine.user_id_R)
    request_ms_C = np.repeat(mine.request_ms_R, np.diff(mine.offsets_R1))
    encoded = encoder.encode(RawCandidates(mine.item_id_C, request_ms_C, mine.surface_C, mine.duration_ms_C))
    count = mine.item_id_C.size
    columns = replace(
        columns,
        request_id=mine.request_id_R,
        user_row=user_row_R,
        request_ms=mine.request_ms_R,
        starts=tuple(_starts(stream, user_row_R, mine.request_ms_R) for stream in columns.streams),
        candidates=TokenColumns(
            offsets=mine.offsets_R1,
            items=encoded.items,
            contexts=encoded.contexts,
            action_mask=np.zeros(count, np.uint32),
            extra=(np.full(count, np.nan, np.float32),),
        ),
    )
    return SourceShard(shard.entry.name, columns, np.arange(mine.num_requests), mine.item_id_C)


def _with_unknown_users(columns: ShardColumns, user_id_R: np.ndarray, *, num_fields: int) -> ShardColumns:
    """The shard with a row without events for every user who has none, users still ascending."""
    new = np.setdiff1d(user_id_R, columns.user_id)
    at = np.searchsorted(columns.user_id, new)
    codes = UserCodes.unknown(num_fields).fields

    def with_empty_rows(stream: TokenColumns) -> TokenColumns:
        return replace(stream, offsets=np.insert(stream.offsets, at, stream.offsets[at]))

    return replace(
        columns,
        user_id=np.insert(columns.user_id, at, new),
        user_fields=tuple(np.insert(field, at, code) for field, code in zip(columns.user_fields, codes, strict=True)),
        streams=tuple(with_empty_rows(stream) for stream in columns.streams),
    )


def _starts(stream: TokenColumns, user_row_R: np.ndarray, request_ms_R: np.ndarray) -> np.ndarray:
    """(R,) where in its user's stream each request's history begins: the first event strictly older."""
    timestamp_ms = stream.extra[0]
    starts = np.empty(user_row_R.size, np.int64)
    for request, (row, request_ms) in enumerate(zip(user_row_R.tolist(), request_ms_R.tolist(), strict=True)):
        times = timestamp_ms[stream.offsets[row] : stream.offsets[row + 1]]
        starts[request] = times.size - np.searchsorted(times[::-1], request_ms, side="left")
    return starts


def plan_batches(source: SourceShard, *, max_lengths: tuple[int, ...], tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Cuts a shard's requests into runs of rows whose histories and candidates fit the budget.

    A request that is larger than the budget comes alone.
    """
    cost_R = _tokens(source.columns, source.rows, max_lengths)
    end_R = np.cumsum(cost_R)
    begin = 0
    while begin < source.rows.size:
        before = int(end_R[begin] - cost_R[begin])
        end = max(int(np.searchsorted(end_R, before + tokens_per_batch, side="right")), begin + 1)
        yield source.rows[begin:end]
        begin = end


def _tokens(columns: ShardColumns, rows: np.ndarray, max_lengths: tuple[int, ...]) -> np.ndarray:
    """(R,) history tokens and candidates of requests."""
    user_row_R = columns.user_row[rows]
    total_R = columns.candidates.offsets[rows + 1] - columns.candidates.offsets[rows]
    for stream, starts, max_length in zip(columns.streams, columns.starts, max_lengths, strict=True):
        length_R = stream.offsets[user_row_R + 1] - stream.offsets[user_row_R] - starts[rows]
        total_R = total_R + np.minimum(length_R, max_length)
    return total_R


def gather(source: SourceShard, rows: np.ndarray, max_lengths: tuple[int, ...]) -> Batch:
    """The batch of some of a shard's requests."""
    return gather_batch([source.columns], np.zeros(rows.size, np.int64), rows, max_lengths=max_lengths)
