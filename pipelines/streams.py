"""The stage `streams`: EVENTS and the vocabulary in, the streams dataset out.

A claim check keeps events out of the runner's shuffle: each work unit is read, split by user and spilled to one Arrow
file; only references to the spilled batches are grouped; each shard is then built from its mapped batches.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import secrets
import shutil
import time
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from features.config import DataConfig, FeaturesConfig
from features.encode import context_fields, intensity_size
from features.errors import DataError
from features.files import atomic_directory, read_json, write_json
from features.fingerprint import Fingerprint
from features.hashing import shard_of
from features.manifest import (
    REQUESTS_FILE,
    USERS_FILE,
    Manifest,
    ShardEntry,
    file_entry,
    params_hash,
    schemas_of,
    shard_name,
    write_manifest,
)
from features.schema import EVENTS, FORMAT_VERSION, ORDER, schema_hash
from features.shard import ShardEncoder, ShardTables, build_shard
from features.side import encode_side_table
from features.spec import CategoricalField, FeatureSpec
from features.vocabulary import VocabularySet
from pipelines.config import PipelinesConfig
from pipelines.engine import run_pipeline, run_stage
from pipelines.events import Unit, cut_of, plan_units, read_side_table, read_unit
from pipelines.progress import Phase, log_progress
from pipelines.shard_report import ShardReport, describe_shard, summarise
from pipelines.spill import SpillRef, read_spill, spill_path, write_spill

_LOG = logging.getLogger(__name__)
_WORK = "work"  # spill files and shard reports, removed before the dataset is published


class SpillUnit(beam.DoFn):
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


class BuildShard(beam.DoFn):
    """(shard, references) in, the shard's finished files and its report on disk."""

    def __init__(self, plan: StreamsPlan) -> None:
        self._plan = plan

    def setup(self) -> None:
        """Loads the lookups once per worker."""
        self._encoder = self._plan.encoder()

    def process(self, element: tuple[int, Iterable[SpillRef]]) -> None:
        """Builds and writes one shard."""
        shard, refs = element
        write_shard(self._plan, self._encoder, shard, events=read_spill(refs))


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


def write_shard(plan: StreamsPlan, encoder: ShardEncoder, shard: int, *, events: pa.Table) -> None:
    """Builds one shard and writes its two files and its report; a retried attempt writes the same bytes again."""
    tables = build_shard(events, encoder)
    directory = plan.out / shard_name(shard, plan.num_shards)
    directory.mkdir(exist_ok=True)
    for name, table in ((USERS_FILE, tables.users), (REQUESTS_FILE, tables.requests)):
        _write_arrow(table, directory / name)
    entry = _entry(directory, tables, plan.features)
    report = describe_shard(entry, tables, plan.features)
    write_json(_report_path(plan, shard), report.model_dump(mode="json"))
    _LOG.info("%s: %d events of %d users, %d requests", entry.name, entry.events, entry.users, entry.requests)


def _report_path(plan: StreamsPlan, shard: int) -> Path:
    return plan.out / _WORK / f"{shard_name(shard, plan.num_shards)}.json"


def _write_arrow(table: pa.Table, path: Path) -> None:
    """Renames when whole, for two attempts may run at once; syncing is up to whoever publishes the dataset."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    os.replace(temporary, path)


def _entry(directory: Path, tables: ShardTables, features: FeaturesConfig) -> ShardEntry:
    return ShardEntry(
        name=directory.name,
        files={file: file_entry(directory / file) for file in (USERS_FILE, REQUESTS_FILE)},
        users=tables.users.num_rows,
        requests=tables.requests.num_rows,
        candidates=_num_values(tables.requests, "candidate.item"),
        events=tables.num_events,
        duplicates=tables.num_duplicates,
        stream_events={stream: _num_values(tables.users, f"{stream}.item") for stream in features.streams},
    )


def _num_values(table: pa.Table, name: str) -> int:
    return sum(len(chunk.flatten()) for chunk in table.column(name).chunks)


def feature_spec(features: FeaturesConfig, vocabularies: VocabularySet) -> FeatureSpec:
    """Names and sizes of everything a model embeds."""

    def fields(names: Iterable[str]) -> tuple[CategoricalField, ...]:
        return tuple(CategoricalField(name=name, size=vocabularies.field(name).size) for name in names)

    num_surfaces = vocabularies.field("surface").size
    return FeatureSpec(
        actions=features.actions,
        streams=tuple(features.streams),
        item_fields=fields(("item", *features.item_categories)),
        user_fields=fields(("user", *features.user_categories)),
        token_contexts=context_fields(features.token_contexts, num_surfaces),
        candidate_contexts=context_fields(features.candidate_contexts, num_surfaces),
        intensity_size=intensity_size(features.intensity),
    )


def build_streams(params: Path, events: Path, vocab: Path, out: Path) -> None:
    """Runs the stage.

    Raises:
        DataError: an input is missing or damaged, or rows were lost on the way to the shards.
    """
    data, features = DataConfig.load(params), FeaturesConfig.load(params)
    config = PipelinesConfig.load(params)
    start = time.monotonic()
    vocabularies = VocabularySet.load(vocab)
    spec = feature_spec(features, vocabularies)
    units = plan_units(events, config.rows_per_unit)
    num_rows = sum(unit.rows for unit in units)
    _LOG.info("%s: %s rows in %d work units", events, f"{num_rows:,}", len(units))
    with atomic_directory(out) as temporary:
        plan = StreamsPlan(
            features=features,
            timezone=data.timezone,
            cut_ms=cut_of(events, data),
            events=events.absolute(),
            vocab=vocab.absolute(),
            out=temporary,
            num_shards=config.num_shards,
        )
        work = temporary / _WORK
        work.mkdir()
        split = Phase("rows split", num_rows, lambda: sum(u.rows for u in units if spill_path(work, u.name).exists()))
        built = Phase("shards built", plan.num_shards, lambda: len(list(work.glob("shard-*.json"))))
        with log_progress(split, built):
            run_pipeline(lambda pipeline: _wire(pipeline, units, plan, work=work), config)
        reports = _collect(plan, num_rows)
        shutil.rmtree(work)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            order=ORDER,
            schema_hash=schema_hash(*schemas_of(spec)),
            params_hash=params_hash(data, features),
            vocabulary_hash=vocabularies.hash,
            cut_ms=plan.cut_ms,
            spec=spec,
            shards=tuple(report.entry for report in reports),
            content_checksum=sum((report.fingerprint for report in reports), Fingerprint()).hex,
        )
        write_json(temporary / "stats.json", summarise(temporary, manifest, reports, features=features))
        write_manifest(temporary, manifest)
    seconds = time.monotonic() - start
    _LOG.info("%s rows in %.1f s, %s a second", f"{num_rows:,}", seconds, f"{num_rows / seconds:,.0f}")


def _wire(pipeline: beam.Pipeline, units: list[Unit], plan: StreamsPlan, *, work: Path) -> None:
    _ = (
        pipeline
        | "Units" >> beam.Create(units)
        | "Spread" >> beam.Reshuffle()
        | "Spill" >> beam.ParDo(SpillUnit(plan.num_shards, str(work))).with_output_types(typing.Tuple[int, typing.Any])  # noqa: UP006
        | "Meet" >> beam.GroupByKey()
        | "Build" >> beam.ParDo(BuildShard(plan))
    )


def _collect(plan: StreamsPlan, expected_rows: int) -> list[ShardReport]:
    """Reports of all shards; those that no row reached are written here, empty.

    Raises:
        DataError: rows were lost or doubled between the input files and the shards.
    """
    encoder: ShardEncoder | None = None
    reports = []
    for shard in range(plan.num_shards):
        path = _report_path(plan, shard)
        if not path.exists():
            encoder = encoder or plan.encoder()
            write_shard(plan, encoder, shard, events=EVENTS.empty_table())
        reports.append(ShardReport.model_validate(read_json(path)))
    reached = sum(report.entry.events + report.entry.duplicates for report in reports)
    if reached != expected_rows:
        raise DataError(
            f"{plan.events}: {expected_rows} rows in the files, {reached} reached the shards; nothing was published"
        )
    return reports


def main() -> None:
    """Command line of the stage; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.streams", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--events", type=Path, default=Path("data/events"))
    parser.add_argument("--vocab", type=Path, default=Path("data/vocab"))
    parser.add_argument("--out", type=Path, default=Path("data/streams"))
    args = parser.parse_args()
    run_stage(lambda: build_streams(args.params, args.events, args.vocab, args.out))


if __name__ == "__main__":
    main()
