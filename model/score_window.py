"""The evaluation window as a scorer reads it: batches by token budget, or request by request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from features.dataset import StreamsDataset
from model.batch import Batch
from model.config import ModelConfig
from model.score_source import SourceShard, evaluation_shard, gather, plan_batches
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
        """About `count` batches of one request, evenly spaced."""
        step = max(1, -(-self.num_requests // count))
        for shard in self.shards:
            for row in shard.rows[::step]:
                yield gather(shard, np.array([row]), self.lengths)


def evaluation_window(
    dataset: StreamsDataset, config: ModelConfig, *, max_requests: int | None, tokens_per_batch: int
) -> Window:
    """The evaluation requests, all of them or evenly spaced ones."""
    shards = [evaluation_shard(shard, dataset) for shard in dataset.shards]
    total = sum(shard.rows.size for shard in shards)
    step = 1 if max_requests is None else max(1, -(-total // max_requests))
    return Window(
        tuple(replace(shard, rows=shard.rows[::step]) for shard in shards),
        max_lengths(config, dataset.manifest.spec),
        tokens_per_batch,
    )
