"""The stage `validate`: reads the whole streams dataset back, holds it against everything it promises and against the
last good night's."""

from __future__ import annotations

import argparse
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import pyarrow.parquet as pq

from features.config import DataConfig, FeaturesConfig
from features.dataset import StreamsDataset, open_dataset
from features.errors import DataError
from features.files import atomic_file, json_text, read_json
from features.fingerprint import Fingerprint
from features.invariants import Figures, Rules, merge_figures
from features.manifest import MANIFEST, params_hash
from features.profile import Profile
from features.vocabulary import VocabularySet
from pipelines.config import PipelinesConfig
from pipelines.drift_page import write_drift_page
from pipelines.engine import run_job, run_stage
from pipelines.events import events_digest
from pipelines.profiles import PROFILES, build_profile, keep_profile, load_baseline, profile_text
from pipelines.quality_gate import GateReport, judge, require_no_drift, summary, table
from pipelines.shard_checks import CheckShard, ShardResult, checking_job
from pipelines.streams import feature_spec
from pipelines.validate_config import ValidateConfig
from pipelines.vocab_base import check_base

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Directories of a validation; they must be reachable by every worker."""

    events: Path
    vocab: Path
    streams: Path


def validate(params: Path, inputs: Inputs, out: Path) -> None:
    """Runs the stage and writes every check with its figures; beside it the profile and what the gate found.

    Raises:
        DataError: a check failed; names the check and the file, or the shard and the first user.
            Or the data has drifted since the baseline.
    """
    out.unlink(missing_ok=True)  # a report must not outlive the dataset that it speaks for
    data, features = DataConfig.load(params), FeaturesConfig.load(params)
    config, gate = PipelinesConfig.load(params), ValidateConfig.load(params)
    baseline = None if gate.baseline is None else load_baseline(gate.baseline)
    dataset = open_dataset(inputs.streams.absolute(), verify=False)  # each worker verifies its shard
    vocabularies, stats = VocabularySet.load(inputs.vocab), read_json(inputs.events / "stats.json")
    checks = {
        "files": _check_files(dataset),
        "params": _check_params(dataset, params_hash(data, features)),
        "vocabulary": _check_vocabulary(dataset, features, vocabularies, vocab=inputs.vocab),
        "accounts": _check_accounts(dataset, inputs),
    }
    rules = Rules(features, dataset.manifest.spec, dataset.manifest.cut_ms, len(dataset.shards))
    with atomic_file(out) as path, ThreadPoolExecutor(1) as beside:
        events = beside.submit(_check_events, dataset, inputs)
        check = CheckShard(dataset, rules, data.timezone)
        run_job(checking_job(check, path, rules.num_shards), config)
        checks["events"] = events.result()
        results = _read_results(path, dataset)
        for name in results[0].figures:
            checks[name] = reduce(merge_figures, (result.figures[name] for result in results))
        checks["content"] = _check_content(dataset, results)
        shards = [result.profile for result in results]
        profile = build_profile(shards, stats, dataset.manifest, vocabularies=vocabularies, timezone=data.timezone)
        report = _pass_gate(profile, judge(profile, baseline, gate), out)
        document = {"checks": checks, "drift": summary(report), **_identity(dataset)}
        path.write_text(json_text(document), encoding="utf-8")
    if config.store is not None:
        keep_profile(profile, config.store / PROFILES)
    _LOG.info("%s: %d checks hold for %d shards", inputs.streams, len(checks), len(results))


def _pass_gate(profile: Profile, report: GateReport, out: Path) -> GateReport:
    """Writes what the gate found beside `out`, whatever it found, and stops the run if it is shut."""
    for name, text in (
        ("profile.json", profile_text(profile)),
        ("drift.json", json_text(report.model_dump(mode="json"))),
    ):
        with atomic_file(out.with_name(name)) as path:
            path.write_text(text, encoding="utf-8")
    write_drift_page(profile, report, out.with_name("drift.html"))
    for line in table(report):
        _LOG.info("%s", line)
    require_no_drift(report)
    return report


def _read_results(path: Path, dataset: StreamsDataset) -> list[ShardResult]:
    """Results in the order of the shards.

    Raises:
        DataError: the runner lost or doubled some.
    """
    texts = json.loads(path.read_text() or "[]")
    results = sorted((ShardResult.model_validate_json(text) for text in texts), key=lambda result: result.index)
    if [result.index for result in results] != list(range(len(dataset.shards))):
        raise DataError(
            f"{dataset.path}: {len(results)} results for {len(dataset.shards)} shards; the runner lost or doubled some"
        )
    return results


def _identity(dataset: StreamsDataset) -> dict[str, object]:
    return {
        "passed": True,  # a failing check raises, and then there is no file
        "content_checksum": dataset.manifest.content_checksum,
        "cut_ms": dataset.manifest.cut_ms,
    }


def _check_files(dataset: StreamsDataset) -> Figures:
    """Sizes were compared when the dataset was opened; whoever checks a shard compares digests and schemas first."""
    files = [file for shard in dataset.manifest.shards for file in shard.files.values()]
    return {"shards": len(dataset.shards), "files": len(files), "bytes": sum(file.bytes for file in files)}


def _check_params(dataset: StreamsDataset, expected: str) -> Figures:
    if dataset.manifest.params_hash != expected:
        raise DataError(
            f"{dataset.path / MANIFEST}: check 'params': made with other settings in the sections data or features;"
            " run the streams stage again"
        )
    return {}


def _check_vocabulary(
    dataset: StreamsDataset, features: FeaturesConfig, vocabularies: VocabularySet, *, vocab: Path
) -> Figures:
    check_base(vocab, features)
    manifest, path = dataset.manifest, dataset.path / MANIFEST
    if manifest.vocabulary_hash != vocabularies.hash:
        raise DataError(f"{path}: check 'vocabulary': made with another vocabulary; run the streams stage again")
    if manifest.spec != feature_spec(features, vocabularies):
        raise DataError(f"{path}: check 'vocabulary': spec has not the sizes of the vocabulary and the settings")
    return vocabularies.sizes


def _check_events(dataset: StreamsDataset, inputs: Inputs) -> Figures:
    """The dataset is made of these events; counts alone would not tell corrected rows from those before."""
    if read_json(inputs.streams / "stats.json").get("events_digest") != events_digest(inputs.events):
        raise DataError(
            f"{dataset.path}: check 'events': made of other events than those in {inputs.events}; run the streams stage"
            " again"
        )
    return {}


def _check_accounts(dataset: StreamsDataset, inputs: Inputs) -> Figures:
    """No row is lost or doubled from the files to the shards: read = events + outside + quarantined + duplicates."""
    ingest, streams = (read_json(directory / "stats.json") for directory in (inputs.events, inputs.streams))
    shards, outside = dataset.manifest.shards, ingest["outside"]
    stored = sum(pq.read_metadata(path).num_rows for path in inputs.events.glob("date=*/*.parquet"))
    events, duplicates = sum(shard.events for shard in shards), sum(shard.duplicates for shard in shards)
    accounts = {
        "ingest's read = kept + outside + quarantined": (
            ingest["read"],
            ingest["kept"] + outside + ingest["quarantined"],
        ),
        "ingest's quarantined = the sum over its reasons": (ingest["quarantined"], sum(ingest["reasons"].values())),
        "ingest's kept = rows of the event files": (ingest["kept"], stored),
        "rows of the event files = streams' read": (stored, streams["read"]),
        "streams' read = events + duplicates": (streams["read"], streams["events"] + streams["duplicates"]),
        "streams' events = the sum over the shards": (streams["events"], events),
        "streams' duplicates = the sum over the shards": (streams["duplicates"], duplicates),
        "read = events + outside + quarantined + duplicates": (
            ingest["read"],
            events + outside + ingest["quarantined"] + duplicates,
        ),
    }
    for account, (left, right) in accounts.items():
        if left != right:
            raise DataError(f"{dataset.path}: check 'accounts': {account} does not hold: {left} and {right}")
    return {
        "read": ingest["read"],
        "outside": outside,
        "quarantined": ingest["quarantined"],
        "duplicates": duplicates,
        "events": events,
    }


def _check_content(dataset: StreamsDataset, results: list[ShardResult]) -> Figures:
    total = sum((Fingerprint(result.fingerprint_lanes) for result in results), Fingerprint())
    if total.hex != dataset.manifest.content_checksum:
        raise DataError(f"{dataset.path / MANIFEST}: check 'content': content_checksum is not that of the rows")
    for entry, result in zip(dataset.manifest.shards, results, strict=True):
        found = result.figures["offsets"]
        if found["candidates"] != entry.candidates:
            raise DataError(f"{dataset.path / entry.name}: check 'content': the manifest counts other candidates")
        if any(found[f"{stream}_events"] != count for stream, count in entry.stream_events.items()):
            raise DataError(f"{dataset.path / entry.name}: check 'content': the manifest counts other events")
    return {"shards": len(results)}


def main() -> None:
    """Command line of the stage; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.validate", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--events", type=Path, default=Path("data/events"))
    parser.add_argument("--vocab", type=Path, default=Path("data/vocab"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--out", type=Path, default=Path("data/validation.json"))
    args = parser.parse_args()
    run_stage(lambda: validate(args.params, Inputs(args.events, args.vocab, args.streams), args.out))


if __name__ == "__main__":
    main()
