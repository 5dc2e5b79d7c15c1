"""The checks of a streams dataset's shards as pipeline steps, importable by workers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from features.config import Closed
from features.dataset import StreamsDataset, open_shard
from features.fingerprint import fingerprint
from features.invariants import Figures, Rules, check_shard
from features.profile import StreamsProfile, profile_shard
from pipelines.steps import Job, Step

_LOG = logging.getLogger(__name__)
_ALL = 0  # the one key under which all results meet


class ShardResult(Closed):
    """What the checks of one shard found."""

    index: int
    figures: dict[str, Figures]
    fingerprint_lanes: tuple[int, ...]
    profile: StreamsProfile


class CheckShard(Step):
    """A shard's number in, its result as JSON under one key out; a failed check raises."""

    def __init__(self, dataset: StreamsDataset, rules: Rules, timezone: str) -> None:
        self._dataset = dataset
        self._rules = rules
        self._timezone = timezone

    def process(self, index: int) -> Iterator[tuple[int, str]]:
        """Checks one shard."""
        manifest = self._dataset.manifest
        shard = open_shard(self._dataset.path, manifest, manifest.shards[index])
        figures = check_shard(shard, index, self._rules)
        lanes = fingerprint(shard.users.table, shard.requests.table).lanes
        _LOG.info("%s: %d events checked", shard.entry.name, shard.entry.events)
        profile = profile_shard(shard, self._rules.spec, self._timezone)
        yield (
            _ALL,
            ShardResult(index=index, figures=figures, fingerprint_lanes=lanes, profile=profile).model_dump_json(),
        )


class WriteResults(Step):
    """(key, all results) in, one JSON file of them out."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, element: tuple[int, Iterable[str]]) -> None:
        """Writes the file."""
        Path(self._path).write_text(json.dumps(sorted(element[1])))


def checking_job(check: CheckShard, results: Path, num_shards: int) -> Job:
    """From shards to the list of their results, JSON texts, in the file `results`."""
    return Job(range(num_shards), check, WriteResults(str(results)))
