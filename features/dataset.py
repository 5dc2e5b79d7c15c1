"""Read access to a streams dataset: memory-mapped columns behind a manifest that was checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.errors import DataError
from features.jagged import Jagged, list_array
from features.manifest import (
    REQUESTS_FILE,
    USERS_FILE,
    FileEntry,
    Manifest,
    ShardEntry,
    file_entry,
    read_manifest,
    schemas_of,
)
from features.schema import check_schema


@dataclass(frozen=True)
class Columns:
    """The columns of one Arrow file, mapped on first use; a pickled copy maps the file anew.

    Arrays are read-only views of the file: gather from them, never write to them.
    """

    path: Path
    schema: pa.Schema
    num_rows: int

    @cached_property
    def table(self) -> pa.Table:
        """The mapped file.

        Raises:
            DataError: it is not an Arrow file, or its schema or row count is not the manifest's.
        """
        try:
            with pa.memory_map(str(self.path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from None
        check_schema(table.schema, self.schema, str(self.path))
        if table.num_rows != self.num_rows:
            raise DataError(f"{self.path}: has {table.num_rows} rows, the manifest says {self.num_rows}")
        return table

    def column(self, name: str) -> np.ndarray:
        """(rows,) values of a plain column."""
        if name not in self.table.column_names:
            raise DataError(f"{self.path}: column '{name}' is missing")
        chunked = self.table.column(name)
        array = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
        return array.to_numpy(zero_copy_only=True)

    def list(self, name: str) -> Jagged:
        """A list column, such as `consumption.item` or `candidate.item`."""
        if name not in self._lists:
            source = f"{self.path}: column '{name}'"
            try:
                array = list_array(self.table, name)
            except KeyError:
                raise DataError(f"{source} is missing") from None
            self._lists[name] = Jagged.from_arrow(array, source)
        return self._lists[name]

    @cached_property
    def _lists(self) -> dict[str, Jagged]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("table", "_lists")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclass(frozen=True)
class Shard:
    """One shard: `users` has a row per user, `requests` a row per request that points into `users`."""

    entry: ShardEntry
    users: Columns
    requests: Columns


@dataclass(frozen=True)
class StreamsDataset:
    """A dataset whose manifest was checked; shards map their files on first use."""

    path: Path
    manifest: Manifest
    shards: tuple[Shard, ...]


def open_dataset(directory: Path, verify: bool = True) -> StreamsDataset:
    """Opens data/streams.

    Args:
        directory: holds manifest.json and the shard directories.
        verify: also compare every file's sha256 and open it; otherwise only its size, until it is used.

    Raises:
        DataError: names the file that is missing, of another version, order, schema, size or checksum.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    shards = tuple(open_shard(directory, manifest, entry, verify=verify) for entry in manifest.shards)
    return StreamsDataset(directory, manifest, shards)


def open_shard(directory: Path, manifest: Manifest, entry: ShardEntry, *, verify: bool = True) -> Shard:
    """Opens one shard of a dataset, see `open_dataset`.

    Raises:
        DataError: names the file of the shard that is missing, or has another size, schema or checksum.
    """
    users, requests = schemas_of(manifest.spec)
    for name in (USERS_FILE, REQUESTS_FILE):
        _check_file(directory / entry.name / name, entry.files.get(name), verify)
    shard = Shard(
        entry,
        users=Columns(directory / entry.name / USERS_FILE, users, entry.users),
        requests=Columns(directory / entry.name / REQUESTS_FILE, requests, entry.requests),
    )
    if verify:
        _ = shard.users.table, shard.requests.table
    return shard


def _check_file(path: Path, expected: FileEntry | None, verify: bool) -> None:
    if expected is None:
        raise DataError(f"{path}: the manifest does not list it")
    if not path.is_file():
        raise DataError(f"{path}: the manifest lists it, but it is missing")
    size = path.stat().st_size
    if size != expected.bytes:
        raise DataError(f"{path}: has {size} bytes, the manifest says {expected.bytes}: truncated or replaced")
    if verify and file_entry(path).sha256 != expected.sha256:
        raise DataError(f"{path}: sha256 differs from the manifest's: its content was changed")
