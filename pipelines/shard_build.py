"""The workers' part of the stage `streams`: work units in, finished shards and their reports on disk.

It is a module of its own, apart from the stage's command, so that workers find its classes by their import path.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from features.arrow_file import write_arrow
from features.config import FeaturesConfig
from features.files import write_scratch_json
from features.hashing import shard_of
from features.jagged import list_array
from features.manifest import REQUESTS_FILE, USERS_FILE, FileEntry, ShardEntry, shard_name
from features.shard import ShardEncoder, ShardTables, encode_shard, order_events
from features.side import encode_side_table
from features.vocabulary import VocabularySet
from pipelines.events import Unit, read_side_table, read_unit
from pipelines.shard_report import describe_shard
from pipelines.spill import SpillRef, read_spill, write_spill
from pipelines.steps import Job, Step

_LOG = logging.getLogger(__name__)


class SpillUnit(Step):
    """A work unit in, (shard, reference) pairs out; nothing is kept between elements."""

    def __init__(self, num_shards: int, directory: str) -> None:
        self._num_shards = num_shards
        self._directory = directory

    def process(self, unit: Unit) -> Iterator[tuple[int, SpillRef]]:
        """Reads, splits and spills."""
        table = read_unit(unit)
        shards = shard_of(table.column("user_id").to_numpy(), self._num_shards)
        for ref in write_spill(table, shards, Path(self._directory), unit.name):
            yield ref.partition, ref


class BuildShard(Step):
    """(shard, references) in, the shard's finished files and its report on disk."""

    def __init__(self, plan: StreamsPlan) -> None:
        self._plan = plan

    def setup(self) -> None:
        """Loads the lookups once per worker."""
        self._encoder = self._plan.encoder()
        self._encoder.vocabularies.index()

    def process(self, element: tuple[int, Iterable[SpillRef]]) -> None:
        """Builds and writes one shard."""
        shard, refs = element
        write_shard(self._plan, self._encoder, shard, read=lambda: read_spill(refs))


@dataclasses.dataclass(frozen=True)
class StreamsPlan:
    """What a worker needs to build a shard; small, so that it travels in the pipeline."""

    features: FeaturesConfig
    timezone: str
    cut_ms: int
    events: Path
    vocab: Path
    out: Path
    num_shards: int

    @property
    def work(self) -> Path:
        """Spill files and shard reports, removed before the dataset is published."""
        return self.out / "work"

    def report_path(self, shard: int) -> Path:
        """Where a shard's report is once its files are whole."""
        return self.work / f"{shard_name(shard, self.num_shards)}.json"

    def encoder(self) -> ShardEncoder:
        """Loads the vocabulary and the side tables."""
        vocabularies, features = VocabularySet.load(self.vocab), self.features
        items = read_side_table(self.events / "items.parquet", "item_id", features.item_categories)
        users = read_side_table(self.events / "users.parquet", "user_id", features.user_categories)
        return ShardEncoder(
            features=features,
            timezone=self.timezone,
            cut_ms=self.cut_ms,
            vocabularies=vocabularies,
            items=encode_side_table(items, "item_id", features.item_categories, vocabularies),
            users=encode_side_table(users, "user_id", features.user_categories, vocabularies),
        )


def write_shard(plan: StreamsPlan, encoder: ShardEncoder, shard: int, *, read: Callable[[], pa.Table]) -> None:
    """Builds one shard and writes its two files and its report; a retried attempt writes the same bytes again.

    Args:
        plan: what to build.
        encoder: from `plan.encoder()`.
        shard: its number.
        read: gives the shard's events, which are let go as soon as they are in order: a shard may be large.
    """
    tables = encode_shard(order_events(read()), encoder)
    directory = plan.out / shard_name(shard, plan.num_shards)
    directory.mkdir(exist_ok=True)
    files = {
        name: write_arrow(table, directory / name)
        for name, table in ((USERS_FILE, tables.users), (REQUESTS_FILE, tables.requests))
    }
    entry = _entry(directory.name, files, tables, streams=tuple(plan.features.streams))
    report = describe_shard(entry, tables, plan.features)
    write_scratch_json(plan.report_path(shard), report.model_dump(mode="json"))
    _LOG.info("%s: %d events of %d users, %d requests", entry.name, entry.events, entry.users, entry.requests)


def _entry(name: str, files: dict[str, FileEntry], tables: ShardTables, *, streams: tuple[str, ...]) -> ShardEntry:
    return ShardEntry(
        name=name,
        files=files,
        users=tables.users.num_rows,
        requests=tables.requests.num_rows,
        candidates=len(list_array(tables.requests, "candidate.item").values),
        events=tables.num_events,
        duplicates=tables.num_duplicates,
        stream_events={stream: len(list_array(tables.users, f"{stream}.item").values) for stream in streams},
    )


def shard_job(units: list[Unit], plan: StreamsPlan) -> Job:
    """From work units to shards."""
    return Job(units, SpillUnit(plan.num_shards, str(plan.work)), BuildShard(plan))
