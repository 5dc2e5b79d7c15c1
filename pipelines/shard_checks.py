"""The checks of a streams dataset's shards as pipeline steps, importable by workers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam

from features.config import Closed
from features.dataset import StreamsDataset, open_shard
from features.fingerprint import fingerprint
from features.invariants import Figures, Rules, check_shard
from features.profile import StreamsProfile, profile_shard

_LOG = logging.getLogger(__name__)


class ShardResult(Closed):
    """What the checks of one shard found."""

    index: int
    figures: dict[str, Figures]
    fingerprint_lanes: tuple[int, ...]
    profile: StreamsProfile


class CheckShard(beam.DoFn):
    """A shard's number in, its result as JSON out; a failed check raises."""

    def __init__(self, dataset: StreamsDataset, rules: Rules, timezone: str) -> None:
        self._dataset = dataset
        self._rules = rules
        self._timezone = timezone

    def process(self, index: int) -> Iterator[str]:
        """Checks one shard."""
        manifest = self._dataset.manifest
        shard = open_shard(self._dataset.path, manifest, manifest.shards[index])
        figures = check_shard(shard, index, self._rules)
        lanes = fingerprint(shard.users.table, shard.requests.table).lanes
        _LOG.info("%s: %d events checked", shard.entry.name, shard.entry.events)
        profile = profile_shard(shard, self._rules.spec, self._timezone)
        yield ShardResult(index=index, figures=figures, fingerprint_lanes=lanes, profile=profile).model_dump_json()


class WriteResults(beam.DoFn):
    """All results in, one JSON file of them out."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, results: list[str]) -> None:
        """Writes the file."""
        Path(self._path).write_text(json.dumps(sorted(results)))


def check_shards(pipeline: beam.Pipeline, check: CheckShard, results: str, num_shards: int) -> None:
    """Checks all shards and writes the list of their results, JSON texts, to the file `results`."""
    _ = (
        pipeline
        | "Shards" >> beam.Create(range(num_shards))
        | "Spread" >> beam.Reshuffle()
        | "Check" >> beam.ParDo(check)
        | "All" >> beam.combiners.ToList()
        | "Write" >> beam.ParDo(WriteResults(results))
    )
