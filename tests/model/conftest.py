"""Streams datasets written by hand, small enough to read back request by request."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml

from features.dataset import StreamsDataset, open_dataset
from features.files import write_json
from features.jagged import list_array
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

CUT_MS = 1_000_000
PARAMS = Path(__file__).parents[2] / "params.yaml"


def _fields(**sizes: int) -> tuple[CategoricalField, ...]:
    return tuple(CategoricalField(name=name, size=size) for name, size in sizes.items())


SPEC = FeatureSpec(
    actions=("is_click", "is_like", "long_view"),
    streams=("consumption", "interaction"),
    item_fields=_fields(item=40, author=12),
    user_fields=_fields(user=30, degree=5),
    token_contexts=_fields(surface=4, hour=25, gap=32),
    candidate_contexts=_fields(surface=4, hour=25),
    intensity_size=40,
)


@dataclass
class Content:
    """Rows of users.arrow and requests.arrow as plain Python; `user_row` counts within the whole dataset.

    A user has a list of events per stream, a request a list `candidates`; events and candidates are dicts with the
    names of the spec's fields, contexts included.
    """

    users: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    spec: FeatureSpec = SPEC


def random_event(rng: random.Random, timestamp_ms: int) -> dict[str, Any]:
    """An event or candidate with random codes."""
    codes = {f.name: rng.randrange(1, f.size) for f in (*SPEC.item_fields, *SPEC.token_contexts)}
    return codes | {
        "timestamp_ms": timestamp_ms,
        "action_mask": rng.randrange(1 << len(SPEC.actions)),
        "intensity": rng.randrange(SPEC.intensity_size),
        "item_id": rng.randrange(1 << 40),
        "watch_ratio": rng.choice([float("nan"), rng.random()]),
    }


def random_content(seed: int, num_users: int = 12, max_events: int = 30) -> Content:
    """Users with 0 and more events per stream, and requests that point anywhere into them."""
    rng = random.Random(seed)
    content = Content()
    for number in range(num_users):
        user: dict[str, Any] = {f.name: rng.randrange(1, f.size) for f in SPEC.user_fields} | {"user_id": 1000 + number}
        for stream in SPEC.streams:
            times = sorted((rng.randrange(2 * CUT_MS) for _ in range(rng.randrange(max_events))), reverse=True)
            user[stream] = [random_event(rng, time) for time in times]
        content.users.append(user)
        for _ in range(rng.randrange(4)):
            request_ms = rng.randrange(2 * CUT_MS)
            request = {
                "request_id": rng.randrange(1 << 60),
                "user_row": number,
                "request_ms": request_ms,
                "split": int(request_ms >= CUT_MS),
                "candidates": [random_event(rng, request_ms) for _ in range(rng.randrange(1, 5))],
            }
            starts = {f"{stream}_start": rng.randrange(len(user[stream]) + 1) for stream in SPEC.streams}
            content.requests.append(request | starts)
    return content


def _column(schema_field: pa.Field, rows: list[dict[str, Any]]) -> pa.Array:
    group, _, name = schema_field.name.partition(".")
    if name:
        return pa.array([[event[name.removeprefix("ctx_")] for event in row[group]] for row in rows], schema_field.type)
    if not pa.types.is_large_list(schema_field.type):
        return pa.array([row[group] for row in rows], schema_field.type)
    names = [f.name for f in schema_field.type.value_type.fields]
    lists = [
        [{name: event[name.removeprefix("ctx_")] for name in names} for event in row["candidates"]] for row in rows
    ]
    return pa.array(lists, schema_field.type)


def _table(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_arrays([_column(schema_field, rows) for schema_field in schema], schema=schema)


def _write_shard(directory: Path, users: pa.Table, requests: pa.Table, spec: FeatureSpec) -> ShardEntry:
    directory.mkdir(parents=True)
    for name, table in ((USERS_FILE, users), (REQUESTS_FILE, requests)):
        with pa.OSFile(str(directory / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def num_values(table: pa.Table, name: str) -> int:
        return len(list_array(table, name).values)

    return ShardEntry(
        name=directory.name,
        files={name: file_entry(directory / name) for name in (USERS_FILE, REQUESTS_FILE)},
        users=users.num_rows,
        requests=requests.num_rows,
        candidates=num_values(requests, "candidate.item"),
        events=num_values(users, "consumption.item"),
        duplicates=0,
        stream_events={stream: num_values(users, f"{stream}.item") for stream in spec.streams},
    )


def write_shards(directory: Path, shards: list[tuple[pa.Table, pa.Table]], spec: FeatureSpec) -> StreamsDataset:
    """Writes a dataset of the shards' users and requests and opens it."""
    entries = [
        _write_shard(directory / shard_name(number, len(shards)), users, requests, spec)
        for number, (users, requests) in enumerate(shards)
    ]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        order=ORDER,
        schema_hash=schema_hash(*schemas_of(spec)),
        params_hash="params",
        vocabulary_hash="vocabulary",
        cut_ms=CUT_MS,
        spec=spec,
        shards=tuple(entries),
        content_checksum="checksum",
    )
    write_manifest(directory, manifest)
    return open_dataset(directory)


def write_content(directory: Path, content: Content, num_shards: int = 1) -> StreamsDataset:
    """Writes a dataset, user u into shard u % num_shards, and opens it."""
    users_schema, requests_schema = schemas_of(content.spec)
    shards = []
    for shard in range(num_shards):
        requests = [
            request | {"user_row": request["user_row"] // num_shards}
            for request in content.requests
            if request["user_row"] % num_shards == shard
        ]
        shards.append((_table(users_schema, content.users[shard::num_shards]), _table(requests_schema, requests)))
    return write_shards(directory, shards, content.spec)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Models this small are fastest on one thread, above all beside other test processes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_content() -> Callable[..., Content]:
    """The function `random_content`."""
    return random_content


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., StreamsDataset]:
    """The function `write_content`."""
    return write_content


@pytest.fixture(scope="session")
def write_tables() -> Callable[..., StreamsDataset]:
    """The function `write_shards`."""
    return write_shards


@pytest.fixture(scope="session")
def write_params() -> Callable[..., Path]:
    """Writes the project's params.yaml with a small model; keyword arguments update sections."""

    def write(path: Path, **sections: dict[str, Any]) -> Path:
        document = yaml.safe_load(PARAMS.read_text())
        stream = {"num_layers": 1, "local_window": 8, "global_window": 4, "pyramid": []}
        document["model"] |= {
            "dim": 16,
            "num_heads": 1,
            "qk_dim": 8,
            "v_dim": 8,
            "streams": {
                "consumption": stream | {"max_length": 16},
                "interaction": stream | {"max_length": 8},
            },
            "contextual": [["user"], ["degree"]],
            "heads": {"tasks": list(SPEC.actions), "hidden_dim": 8, "watch_ratio_weight": 0.0},
        }
        document["train"] |= {"batch_size": 4, "warmup_steps": 2, "log_every_steps": 2, "num_epochs": 2}
        document["evaluate"] |= {
            "batch_size": 4,
            "groups": {"consumption": ["is_click", "long_view"], "engagement": ["is_like"]},
            "calibration_bins": 4,
        }
        for section, changes in sections.items():
            document[section] |= changes
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def write_validation() -> Callable[..., Path]:
    """Writes a validation.json as the validate stage does, for the checksum of handwritten datasets."""

    def write(path: Path, **changes: Any) -> Path:
        write_json(path, {"passed": True, "content_checksum": "checksum"} | changes)
        return path

    return write
