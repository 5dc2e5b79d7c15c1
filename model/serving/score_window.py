"""The evaluation window as a scorer reads it: batches by token budget, or request by request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from features.dataset import StreamsDataset
from model.batch import Batch
from model.config import ModelConfig
from model.serving.score_source import SourceShard, evaluation_shard, gather, plan_batches
from model.stage import max_lengths


@dataclass(frozen=True)
class Window:
    """The requests that every variant scores."""

    shards: tuple[SourceShard, ...]
    lengths: tuple[int, ...]
    tokens_per_batch: int

    @property
    def num_requests(self) -> int:
        """In all shards."""
        return sum(shard.rows.size for shard in self.shards)

    @cached_property
    def plan(self) -> list[tuple[SourceShard, np.ndarray]]:
        """Shard and rows of every batch, in order."""
        return [
            (shard, rows)
            for shard in self.shards
            for rows in plan_batches(shard, max_lengths=self.lengths, tokens_per_batch=self.tokens_per_batch)
        ]

    def batches(self) -> Iterator[Batch]:
        """All batches, in order."""
        return (gather(shard, rows, self.lengths) for shard, rows in self.plan)

    def single_requests(self, count: int) -> Iterator[Batch]:
        """At most `count` batches of one request, evenly spaced."""
        for shard in evenly_spaced(self.shards, count):
            for row in shard.rows:
                yield gather(shard, np.array([row]), self.lengths)


def evaluation_window(
    dataset: StreamsDataset, config: ModelConfig, *, max_requests: int | None, tokens_per_batch: int
) -> Window:
    """The evaluation requests, all of them or evenly spaced ones."""
    shards = tuple(evaluation_shard(shard, dataset) for shard in dataset.shards)
    return Window(
        shards if max_requests is None else evenly_spaced(shards, max_requests),
        max_lengths(config, dataset.manifest.spec),
        tokens_per_batch,
    )


def evenly_spaced(shards: tuple[SourceShard, ...], count: int) -> tuple[SourceShard, ...]:
    """The shards with `count` of all their requests, or with all if there are not that many."""
    ends = np.cumsum([shard.rows.size for shard in shards])
    total = int(ends[-1]) if ends.size else 0
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    begins = ends - [shard.rows.size for shard in shards]
    return tuple(
        replace(shard, rows=shard.rows[chosen[(chosen >= begin) & (chosen < end)] - begin])
        for shard, begin, end in zip(shards, begins, ends, strict=True)
    )
