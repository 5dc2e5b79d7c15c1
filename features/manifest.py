"""manifest.json: what a streams dataset holds. Written last, so a directory without it is not a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from features.config import Closed, DataConfig, FeaturesConfig, describe
from features.errors import DataError
from features.files import read_json, write_json
from features.schema import FORMAT_VERSION, ORDER, requests_schema, schema_hash, users_schema
from features.spec import FeatureSpec

MANIFEST = "manifest.json"
USERS_FILE = "users.arrow"
REQUESTS_FILE = "requests.arrow"


class FileEntry(Closed):
    """Size and digest of one file."""

    bytes: int
    sha256: str


class ShardEntry(Closed):
    """One shard: its directory, its files and its counts. `events` counts rows after the removal of duplicates."""

    name: str
    files: dict[str, FileEntry]
    users: int
    requests: int
    candidates: int
    events: int
    duplicates: int
    stream_events: dict[str, int]


class Manifest(Closed):
    """Everything a reader must know before it opens a shard."""

    format_version: int
    order: str
    schema_hash: str
    params_hash: str
    vocabulary_hash: str
    cut_ms: int
    spec: FeatureSpec
    shards: tuple[ShardEntry, ...]
    content_checksum: str


def shard_name(index: int, num_shards: int) -> str:
    """Directory name of a shard."""
    return f"shard-{index:05d}-of-{num_shards:05d}"


def params_hash(data: DataConfig, features: FeaturesConfig) -> str:
    """Hex digest of the settings that shape the rows; where the logs lie is not one of them."""
    settings = {"data": data.model_dump(mode="json", exclude={"path"}), "features": features.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def schemas_of(spec: FeatureSpec) -> tuple[pa.Schema, pa.Schema]:
    """Schemas of users.arrow and requests.arrow; the spec holds every name that they depend on."""
    names = FeaturesConfig.model_construct(
        streams=dict.fromkeys(spec.streams, "all"),
        item_categories=tuple(field.name for field in spec.item_fields[1:]),
        user_categories=tuple(field.name for field in spec.user_fields[1:]),
        token_contexts=tuple(field.name for field in spec.token_contexts),
        candidate_contexts=tuple(field.name for field in spec.candidate_contexts),
    )
    return users_schema(names), requests_schema(names)


def file_entry(path: Path) -> FileEntry:
    """Size and digest of a file as it is on disk."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return FileEntry(bytes=path.stat().st_size, sha256=digest)


def file_entries(paths: Iterable[Path]) -> list[FileEntry]:
    """`file_entry` of each file, some at a time."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(file_entry, paths))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Publishes the dataset in `directory`: call it after every other file is in place."""
    write_json(directory / MANIFEST, manifest.model_dump(mode="json"))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a dataset that this version can read.

    Raises:
        DataError: it is missing, damaged, or of another version, order or schema.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: missing, so {directory} is not a finished dataset; run the streams stage")
    document = read_json(path)
    found = document if isinstance(document, dict) else {}
    for key, expected in (("format_version", FORMAT_VERSION), ("order", ORDER)):
        if found.get(key) != expected:
            raise DataError(
                f"{path}: {key} is {found.get(key)!r}, this code reads {expected!r}; run the streams stage again"
            )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise DataError(describe(error, path, "manifest")) from None
    if schema_hash(*schemas_of(manifest.spec)) != manifest.schema_hash:
        raise DataError(f"{path}: schema_hash is not that of this code's schema; run the streams stage again")
    return manifest
