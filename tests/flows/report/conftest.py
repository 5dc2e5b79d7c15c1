"""Small outputs of every stage, as the report reads them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.config import FeaturesConfig
from features.encode import context_fields, intensity_size
from features.manifest import (
    REQUESTS_FILE,
    USERS_FILE,
    Manifest,
    ShardEntry,
    file_entry,
    schemas_of,
    shard_name,
    write_manifest,
)
from features.schema import FORMAT_VERSION, ORDER, schema_hash
from features.spec import CategoricalField, FeatureSpec
from flows.report.inputs import ReportPaths
from model.config import ModelConfig

PARAMS = Path(__file__).parents[3] / "params.yaml"
TASKS = ModelConfig.load(PARAMS).heads.tasks


def make_spec(features: FeaturesConfig, size: int) -> FeatureSpec:
    def fields(names: tuple[str, ...]) -> tuple[CategoricalField, ...]:
        return tuple(CategoricalField(name=name, size=size) for name in names)

    return FeatureSpec(
        actions=features.actions,
        streams=tuple(features.streams),
        item_fields=fields(("item", *features.item_categories)),
        user_fields=fields(("user", *features.user_categories)),
        token_contexts=context_fields(features.token_contexts, 8),
        candidate_contexts=context_fields(features.candidate_contexts, 8),
        intensity_size=intensity_size(features.intensity),
    )


def filled(schema: pa.Schema, columns: dict[str, list[Any]]) -> pa.Table:
    """A table of the given columns; the others hold zeros and empty lists."""
    rows = len(next(iter(columns.values())))
    arrays = []
    for field in schema:
        default = [[]] * rows if pa.types.is_large_list(field.type) else [0] * rows
        arrays.append(pa.array(columns.get(field.name, default), field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_streams(directory: Path, spec: FeatureSpec) -> None:
    """Two shards: users with 0, 1 and 5 events, then one with 300; interaction streams are empty or of 2."""
    shards = [
        (
            {"consumption.item": [[], [7], [7] * 5], "interaction.item": [[], [], [7, 7]]},
            [1, 2, 2],
            [0, 1, 4],
            [0, 0, 1],
        ),
        ({"consumption.item": [[7] * 300], "interaction.item": [[]]}, [0], [0], [0]),
    ]
    users_schema, requests_schema = schemas_of(spec)
    entries = []
    for index, (users, user_rows, starts, interaction_starts) in enumerate(shards):
        name = shard_name(index, len(shards))
        (directory / name).mkdir(parents=True)
        requests = {"user_row": user_rows, "consumption_start": starts, "interaction_start": interaction_starts}
        for file, table in (
            (USERS_FILE, filled(users_schema, users)),
            (REQUESTS_FILE, filled(requests_schema, requests)),
        ):
            with pa.OSFile(str(directory / name / file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        entry = ShardEntry(
            name=name,
            files={file: file_entry(directory / name / file) for file in (USERS_FILE, REQUESTS_FILE)},
            users=len(users["consumption.item"]),
            requests=len(user_rows),
            candidates=0,
            events=0,
            duplicates=0,
            stream_events={},
        )
        entries.append(entry)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        order=ORDER,
        schema_hash=schema_hash(*schemas_of(spec)),
        params_hash="c0ffee",
        vocabulary_hash="beef",
        cut_ms=0,
        spec=spec,
        shards=tuple(entries),
        content_checksum="cafe",
    )
    write_manifest(directory, manifest)


def event_stats() -> dict[str, Any]:
    reasons = {"negative id": 2, "null key": 1}
    file = {"file": "log.csv", "read": 309, "kept": 306, "quarantined": 3, "reasons": reasons}
    days = {f"2022-04-{day}": 50 for day in range(22, 29)}
    stats = {"first_day": "2022-04-22", "last_day": "2022-04-28", "days": days, "files": [file], "side_tables": []}
    return {**stats, "read": 309, "kept": 306, "quarantined": 3, "reasons": reasons}


def stream_stats(features: FeaturesConfig) -> dict[str, Any]:
    streams = {
        name: {"events": 306, "users": 4, "actions": dict.fromkeys(features.actions, 61)} for name in features.streams
    }
    requests = {"train": 3, "eval": 1}
    return {
        **{"read": 306, "events": 304, "duplicates": 2, "users": 4, "candidates": 304, "cut_ms": 0},
        **{"requests": requests, "streams": streams},
    }


def evaluation() -> dict[str, Any]:
    task = {"ne": 0.8, "auc": 0.75, "gauc": 0.7, "positives": 120, "base_rate": 0.4, "num_candidates": 300}
    tasks: dict[str, Any] = {name: {**task, "floor_ne": 0.9, "floor_auc": 0.7} for name in TASKS}
    tasks["is_hate"] = {**dict.fromkeys(tasks["is_hate"]), "positives": 0, "base_rate": 0.0, "num_candidates": 300}
    means = {"c_ne": 0.8, "e_ne": 0.95, "floor_c_ne": 0.9, "floor_e_ne": 0.9}
    return {"tasks": tasks, **means, "num_requests": 77, "num_candidates": 300, "cut_ms": 0}


def serving() -> dict[str, Any]:
    """Two precisions of metrics/inference.json."""
    row = {
        "label": "fp32",
        "tasks": {"is_click": {"ne": 0.8, "auc": 0.75}},
        "c_ne": 0.80001,
        "e_ne": None,
        "table_bytes": 4_520_000,
        "table_share": 1.0,
        "largest_difference": 0.0,
        "latency_p50_ms": 2.5,
        "latency_p99_ms": 3.25,
        "candidates_per_s": 7000.4,
    }
    narrow = row | {"label": "int4", "table_bytes": 680_000, "table_share": 0.1503, "largest_difference": 0.0123}
    return {
        "variants": [row, narrow],
        "num_requests": 4585,
        "num_candidates": 4608,
        "device": "a CPU",
        "versions": {"torch": "2.13.0"},
        "bundle": "0f98e508111888de",
    }


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="session")
def spec() -> FeatureSpec:
    return make_spec(FeaturesConfig.load(PARAMS), size=50)


@pytest.fixture
def paths(tmp_path: Path, spec: FeatureSpec) -> ReportPaths:
    paths = ReportPaths(
        params=tmp_path / "params.yaml",
        events=tmp_path / "events",
        vocab=tmp_path / "vocab",
        streams=tmp_path / "streams",
        validation=tmp_path / "validation.json",
        metrics=tmp_path / "metrics",
    )
    for folder in (paths.events, paths.vocab, paths.metrics):
        folder.mkdir()
    paths.params.write_text(PARAMS.read_text())
    features = FeaturesConfig.load(PARAMS)
    side = {"events": 200, "unknown": 2, "unknown_share": 0.01}
    write_streams(paths.streams, spec)
    documents = {
        paths.events / "stats.json": event_stats(),
        paths.vocab / "stats.json": {name: {"size": 50, "train": side, "eval": side} for name in ("user", "item")},
        paths.streams / "stats.json": stream_stats(features),
        paths.validation: {"passed": True, "checks": {"order": {"pairs": 12345}}},
        paths.metrics / "train.json": {"loss": 0.5, "steps": 60, "task_losses": {"is_click": 0.6}},
        paths.metrics / "evaluate.json": evaluation(),
        paths.metrics / "inference.json": serving(),
    }
    for path, document in documents.items():
        path.write_text(json.dumps(document))
    write_csv(paths.metrics / "loss.csv", ["step", "loss"], [[step, 1 / step] for step in range(1, 60)])
    bins = [[task, index, 0.1 * index, 0.09 * index, 30] for task in TASKS for index in range(1, 6)]
    write_csv(paths.metrics / "calibration.csv", ["task", "bin", "mean_predicted", "mean_label", "count"], bins)
    return paths
