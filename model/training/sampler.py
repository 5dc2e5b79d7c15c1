"""Which requests make up which batch: a pure function of (seed, epoch, position), whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from features.dataset import StreamsDataset
from features.errors import DataError

TRAIN, EVALUATION = 0, 1


@dataclass(frozen=True)
class RequestIndex:
    """Where the requests of one split lie, ascending by request_id, so that sharding leaves no trace in the order.

    Attributes:
        shard_R: (R,) int32, position in the dataset's shards.
        row_R: (R,) int64, row in that shard's requests.arrow.
    """

    shard_R: np.ndarray
    row_R: np.ndarray

    @property
    def num_requests(self) -> int:
        """R."""
        return self.row_R.size

    def chosen(self, mask_R: np.ndarray) -> RequestIndex:
        """The requests of a mask, in the same order."""
        return RequestIndex(self.shard_R[mask_R], self.row_R[mask_R])


def index_requests(dataset: StreamsDataset, split: int) -> RequestIndex:
    """Lists the requests of a split.

    Raises:
        DataError: two requests share a request_id.
    """
    rows = [np.flatnonzero(shard.requests.column("split") == split) for shard in dataset.shards]
    ids = [shard.requests.column("request_id")[row] for shard, row in zip(dataset.shards, rows, strict=True)]
    request_id_R = np.concatenate([np.empty(0, np.int64), *ids])
    order = np.argsort(request_id_R, kind="stable")
    repeated = np.flatnonzero(np.diff(request_id_R[order]) == 0)
    if repeated.size:
        raise DataError(
            f"{dataset.path}: request_id {request_id_R[order][repeated[0]]} is there twice; run streams again"
        )
    shard_R = np.repeat(np.arange(len(rows), dtype=np.int32), [row.size for row in rows])
    return RequestIndex(shard_R[order], np.concatenate([np.empty(0, np.int64), *rows])[order])


def epoch_order(num_requests: int, seed: int | None, epoch: int) -> np.ndarray:
    """The order of an epoch: (R,) int64, a permutation over all requests, or ascending when `seed` is None."""
    if seed is None:
        return np.arange(num_requests)
    return np.random.default_rng([seed, epoch]).permutation(num_requests)


@dataclass
class EpochSampler:
    """Yields the remaining batches of an epoch as (B,) int64 positions in a RequestIndex.

    Every request comes exactly once an epoch; the last batch may be smaller.

    Attributes:
        num_requests: R.
        batch_size: requests per batch.
        seed: of the shuffle, None for the index's own order.
        epoch: the epoch that the next iteration reads.
        position: batches of that epoch already delivered.
    """

    num_requests: int
    batch_size: int
    seed: int | None
    epoch: int = 0
    position: int = 0

    def __len__(self) -> int:
        return -(-self.num_requests // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = epoch_order(self.num_requests, self.seed, self.epoch)
        for start in range(self.position * self.batch_size, self.num_requests, self.batch_size):
            yield order[start : start + self.batch_size]

    def delivered(self) -> None:
        """Moves past one batch, and on to the next epoch after the last one."""
        self.position += 1
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0


def history_lengths(dataset: StreamsDataset, index: RequestIndex) -> np.ndarray:
    """(R, S) int32, history events of each request in each stream, before any maximum."""
    streams = dataset.manifest.spec.streams
    length_RS = np.empty((index.num_requests, len(streams)), np.int32)
    for number, shard in enumerate(dataset.shards):
        chosen = np.flatnonzero(index.shard_R == number)
        row = index.row_R[chosen]
        user_row = shard.requests.column("user_row")[row]
        for stream, name in enumerate(streams):
            offsets = shard.users.list(f"{name}.item").offsets
            start = shard.requests.column(f"{name}_start")[row]
            length_RS[chosen, stream] = offsets[user_row + 1] - offsets[user_row] - start
    return length_RS


def request_times(dataset: StreamsDataset, index: RequestIndex) -> np.ndarray:
    """(R,) int64, request_ms of each request."""
    times_R = np.empty(index.num_requests, np.int64)
    for number, shard in enumerate(dataset.shards):
        chosen = np.flatnonzero(index.shard_R == number)
        times_R[chosen] = shard.requests.column("request_ms")[index.row_R[chosen]]
    return times_R
