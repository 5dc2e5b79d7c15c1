"""Batches of a streams dataset: shuffled over all requests, resumable, the same with and without worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from features.dataset import StreamsDataset
from model.batch import Batch
from model.gather import ShardColumns, gather_batch, open_columns
from model.read_ahead import one_ahead, read_ahead
from model.training.distributed import World
from model.training.sampler import EpochSampler, RequestIndex, history_lengths, index_requests

_BATCHES_AHEAD = 3
Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class BatchKey:
    """Names the requests of a batch and how much of their histories to read.

    Attributes:
        shard_B: (B,) of each request.
        row_B: (B,) in that shard's requests.
        max_lengths: newest history events per stream, a number for all requests or (B,) of their own.
    """

    shard_B: np.ndarray
    row_B: np.ndarray
    max_lengths: tuple[int | np.ndarray, ...]


class ReaderState(TypedDict):
    """Where a reader stands: `position` batches of `epoch` were delivered."""

    epoch: int
    position: int


class BatchSource(Dataset):
    """Maps a BatchKey to its Batch; picklable, opens the shards where it is used."""

    def __init__(self, dataset: StreamsDataset) -> None:
        self._dataset = dataset

    @cached_property
    def _shards(self) -> list[ShardColumns]:
        return [open_columns(shard, self._dataset.manifest.spec) for shard in self._dataset.shards]

    def __getitem__(self, key: BatchKey) -> Batch:
        return gather_batch(self._shards, key.shard_B, key.row_B, max_lengths=key.max_lengths)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}


class LengthRule(Protocol):
    """Decides step by step how much of each history is read; model.training.lbsl.LoadBalancer is one."""

    state: Any

    def decide(self, lengths: Sequence[np.ndarray], *, begin: int, num_requests: int) -> tuple[np.ndarray, ...]:
        """Per stream (B,) events to keep of histories of these lengths, and the step that follows.

        The B requests are those from `begin` on of the `num_requests` of all ranks.
        """


class _Keys:
    """The remaining batches' keys, in the order in which DataLoader hands them out.

    Keys are drawn ahead of their delivery, by as much as the workers read ahead. `delivered` moves the rule's state and
    the sampler by one batch, so that they are those of the batches that came out.
    """

    def __init__(
        self,
        index: RequestIndex,
        sampler: EpochSampler,
        max_lengths: tuple[int, ...],
        *,
        world: World,
        length_RS: np.ndarray | None,
        rule: LengthRule | None,
    ) -> None:
        self.index = index
        self._sampler = sampler
        self._max_lengths = max_lengths
        self._world = world
        self._length_RS = length_RS
        self._rule = rule
        self.rule_state = rule.state if rule else None
        self._drawn_states: deque[Any] = deque()

    def __iter__(self) -> Iterator[BatchKey]:
        self._drawn_states.clear()
        if self._rule:
            self._rule.state = self.rule_state
        for positions_G in self._sampler:
            part = self._world.part(positions_G.size)
            yield self._key(positions_G[part], begin=part.start, num_requests=positions_G.size)

    def __len__(self) -> int:
        return len(self._sampler)

    def _key(self, positions_B: np.ndarray, *, begin: int, num_requests: int) -> BatchKey:
        max_lengths: tuple[int | np.ndarray, ...] = self._max_lengths
        if self._rule and self._length_RS is not None:
            lengths = np.minimum(self._length_RS[positions_B], self._max_lengths).T
            max_lengths = self._rule.decide(list(lengths), begin=begin, num_requests=num_requests)
            self._drawn_states.append(self._rule.state)
        return BatchKey(self.index.shard_R[positions_B], self.index.row_R[positions_B], max_lengths)

    def delivered(self) -> None:
        """Counts one batch that came out."""
        self._sampler.delivered()
        if self._rule:
            self.rule_state = self._drawn_states.popleft()


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
        world: World | None = None,
        rule: LengthRule | None = None,
        index: RequestIndex | None = None,
        pin: bool = False,
    ) -> None:
        """Indexes the split.

        Args:
            dataset: what `features.manifest.open_dataset` returned.
            split: 0 training, 1 evaluation.
            batch_size: requests per batch, of all ranks together.
            max_lengths: newest history events per stream of the spec; 0 leaves the stream empty.
            shuffle_seed: with the epoch it decides the order; None reads by ascending request_id.
            num_workers: spawned reader processes; 0 reads in this one.
            world: the ranks that share each batch; each reads its part, which may be empty.
            rule: cuts histories further; all of `max_lengths` is read without one.
            index: the requests to read, all of the split unless given.
            pin: get batches ready for a GPU in a thread that reads ahead: known codes counted, in page-locked memory.

        Raises:
            DataError: a shard is inconsistent.
        """
        if len(max_lengths) != len(dataset.manifest.spec.streams):
            raise ValueError("max_lengths needs one entry per stream of the dataset")
        self.spec = dataset.manifest.spec
        index = index or index_requests(dataset, split)
        self._sampler = EpochSampler(index.num_requests, batch_size, shuffle_seed)
        self._max_lengths = max_lengths
        self._keys = _Keys(
            index,
            self._sampler,
            max_lengths,
            world=world or World(),
            length_RS=history_lengths(dataset, index) if rule else None,
            rule=rule,
        )
        self._source = BatchSource(dataset)
        self._num_workers = num_workers
        self._pin = pin

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
        return self._delivered(self._batches())

    def ahead(
        self,
        prepare: Callable[[Batch], Item],
        begin: Callable[[Item], Prepared],
        *,
        watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
    ) -> Iterator[Prepared]:
        """An iteration that hands out begin(prepare(batch)): batch 2 is prepared when 1 has begun, before its step.

        Args:
            prepare: what a step must know of a batch, which a GPU so finds out before it works on the batch in front.
            begin: what is done right before the step.
            watch: goes around the batches as they are read.
        """
        return self._delivered(one_ahead(map(prepare, watch(self._batches())), begin))

    def _batches(self) -> Iterator[Batch]:
        batches: Iterator[Batch] = (
            iter(self._loader) if self._num_workers else map(self._source.__getitem__, self._keys)
        )
        if self._pin:
            return read_ahead(batches, lambda batch: batch.counted().pin_memory(), depth=_BATCHES_AHEAD)
        return batches

    def _delivered(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            self._keys.delivered()
            yield item

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

    @property
    def rule_state(self) -> Any:
        """The rule's state after the batches that were delivered; None without a rule."""
        return self._keys.rule_state

    @rule_state.setter
    def rule_state(self, state: Any) -> None:
        self._keys.rule_state = state

    def sample(self, count: int) -> Batch:
        """At most `count` requests, evenly spaced over the split."""
        chosen = slice(None, None, max(1, -(-self.num_requests // count)))
        return self._source[
            BatchKey(self._keys.index.shard_R[chosen], self._keys.index.row_R[chosen], self._max_lengths)
        ]

    def state_dict(self) -> ReaderState:
        """(epoch, position); exact however far the workers have read ahead."""
        return {"epoch": self._sampler.epoch, "position": self._sampler.position}

    def load_state_dict(self, state: ReaderState) -> None:
        """Continues from a saved state."""
        self._sampler.epoch, self._sampler.position = state["epoch"], state["position"]


def _unchanged(batch: Any) -> Any:
    return batch
