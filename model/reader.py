"""Batches of a streams dataset: shuffled over all requests, resumable, the same with and without worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from features.dataset import StreamsDataset
from model.batch import Batch
from model.gather import ShardColumns, gather_batch, open_columns
from model.sampler import EpochSampler, RequestIndex, index_requests


@dataclass(frozen=True)
class BatchKey:
    """Names the requests of a batch: `shard_B` and `row_B`, (B,) each."""

    shard_B: np.ndarray
    row_B: np.ndarray


class ReaderState(TypedDict):
    """Where a reader stands: `position` batches of `epoch` were delivered."""

    epoch: int
    position: int


class BatchSource(Dataset):
    """Maps a BatchKey to its Batch; picklable, opens the shards where it is used."""

    def __init__(self, dataset: StreamsDataset, max_lengths: tuple[int, ...]) -> None:
        self._dataset = dataset
        self._max_lengths = max_lengths

    @cached_property
    def _shards(self) -> list[ShardColumns]:
        return [open_columns(shard, self._dataset.manifest.spec) for shard in self._dataset.shards]

    def __getitem__(self, key: BatchKey) -> Batch:
        return gather_batch(self._shards, key.shard_B, key.row_B, max_lengths=self._max_lengths)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}


@dataclass(frozen=True)
class _Keys:
    """The remaining batches' keys, in the order in which DataLoader hands them out."""

    index: RequestIndex
    sampler: EpochSampler

    def __iter__(self) -> Iterator[BatchKey]:
        for positions_B in self.sampler:
            yield BatchKey(self.index.shard_R[positions_B], self.index.row_R[positions_B])

    def __len__(self) -> int:
        return len(self.sampler)


class Reader:
    """Iterates the batches of one split.

    One iteration delivers what is left of the current epoch, every request exactly once, the last partial batch
    included; the next iteration reads the next epoch. Tensors are fresh and writable, nothing is padded.
    """

    def __init__(
        self,
        dataset: StreamsDataset,
        *,
        split: int,
        batch_size: int,
        max_lengths: tuple[int, ...],
        shuffle_seed: int | None = None,
        num_workers: int = 0,
    ) -> None:
        """Indexes the split.

        Args:
            dataset: what `features.manifest.open_dataset` returned.
            split: 0 training, 1 evaluation.
            batch_size: requests per batch.
            max_lengths: newest history events per stream of the spec; 0 leaves the stream empty.
            shuffle_seed: with the epoch it decides the order; None reads by ascending request_id.
            num_workers: spawned reader processes; 0 reads in this one.

        Raises:
            DataError: a shard is inconsistent.
        """
        if len(max_lengths) != len(dataset.manifest.spec.streams):
            raise ValueError("max_lengths needs one entry per stream of the dataset")
        self.spec = dataset.manifest.spec
        index = index_requests(dataset, split)
        self._sampler = EpochSampler(index.num_requests, batch_size, shuffle_seed)
        self._keys = _Keys(index, self._sampler)
        self._source = BatchSource(dataset, max_lengths)
        self._num_workers = num_workers

    @property
    def num_requests(self) -> int:
        """Requests of the split."""
        return self._sampler.num_requests

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        return len(self._sampler)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration reads."""
        return self._sampler.epoch

    def __iter__(self) -> Iterator[Batch]:
        batches = self._loader if self._num_workers else map(self._source.__getitem__, self._keys)
        for batch in batches:
            self._sampler.delivered()
            yield batch

    @cached_property
    def _loader(self) -> DataLoader:
        # A generator of its own: DataLoader otherwise draws from the global one, which dropout uses.
        return DataLoader(
            self._source,
            sampler=self._keys,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self._num_workers,
            multiprocessing_context="spawn",
            persistent_workers=True,
            generator=torch.Generator(),
        )

    def sample(self, count: int) -> Batch:
        """At most `count` requests, evenly spaced over the split."""
        chosen = slice(None, None, max(1, -(-self.num_requests // count)))
        return self._source[BatchKey(self._keys.index.shard_R[chosen], self._keys.index.row_R[chosen])]

    def state_dict(self) -> ReaderState:
        """(epoch, position); exact however far the workers have read ahead."""
        return {"epoch": self._sampler.epoch, "position": self._sampler.position}

    def load_state_dict(self, state: ReaderState) -> None:
        """Continues from a saved state."""
        self._sampler.epoch, self._sampler.position = state["epoch"], state["position"]


def _unchanged(batch: Any) -> Any:
    return batch
