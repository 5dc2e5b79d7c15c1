"""The stage `streams`: EVENTS and the vocabulary in, the streams dataset out.

A claim check keeps events out of the runner's shuffle: each work unit is read, split by user and spilled to one Arrow
file; only references to the spilled batches are grouped; each shard is then built from its mapped batches.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from features.config import DataConfig, FeaturesConfig
from features.encode import context_fields, intensity_size
from features.errors import DataError
from features.files import atomic_directory, read_json, write_json
from features.fingerprint import Fingerprint
from features.manifest import Manifest, params_hash, schemas_of, write_manifest
from features.schema import EVENTS, FORMAT_VERSION, ORDER, schema_hash
from features.shard import ShardEncoder
from features.spec import CategoricalField, FeatureSpec
from features.storage import is_url
from features.vocabulary import VocabularySet
from pipelines.config import PipelinesConfig
from pipelines.engine import run_job, run_stage
from pipelines.events import Unit, check_unchanged, cut_of, events_digest, plan_units
from pipelines.progress import Phase, log_progress
from pipelines.shard_build import StreamsPlan, write_shard
from pipelines.shard_exchange import exchanged_job
from pipelines.shard_report import ShardReport, summarise
from pipelines.spill import spill_path

_LOG = logging.getLogger(__name__)


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
        plan.work.mkdir()
        split = Phase("rows split", num_rows, lambda: _rows_spilled(plan, units))
        built = Phase("shards built", plan.num_shards, lambda: len(list(plan.work.glob("shard-*.json"))))
        phases = () if is_url(config.spill or "") else (split, built)
        with ThreadPoolExecutor(1) as beside, log_progress(*phases), exchanged_job(config.spill, units, plan) as job:
            digest = beside.submit(events_digest, events)
            run_job(job, config, needs_disk=False)
        reports = _collect(plan, num_rows)
        shutil.rmtree(plan.work)
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
        stats = summarise(temporary, manifest, reports, features=features) | {"events_digest": digest.result()}
        check_unchanged(units)  # the digest must be that of what was read
        write_json(temporary / "stats.json", stats)
        write_manifest(temporary, manifest)
    seconds = time.monotonic() - start
    _LOG.info("%s rows in %.1f s, %s a second", f"{num_rows:,}", seconds, f"{num_rows / seconds:,.0f}")


def _rows_spilled(plan: StreamsPlan, units: list[Unit]) -> int:
    return sum(unit.rows for unit in units if spill_path(plan.work, unit.name).exists())


def _collect(plan: StreamsPlan, expected_rows: int) -> list[ShardReport]:
    """Reports of all shards; those that no row reached are written here, empty.

    Raises:
        DataError: rows were lost or doubled between the input files and the shards.
    """
    encoder: ShardEncoder | None = None
    reports = []
    for shard in range(plan.num_shards):
        path = plan.report_path(shard)
        if not path.exists():
            encoder = encoder or plan.encoder()
            write_shard(plan, encoder, shard, read=EVENTS.empty_table)
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
