"""Reading the EVENTS directory that ingest wrote: its account, its days and its work units."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.calendar import evaluation_cut_ms
from features.config import DataConfig
from features.errors import DataError
from features.files import read_json
from features.manifest import file_entries
from features.schema import EVENTS, check_schema, side_table_schema

# Files of days with few rows are read together: some logs have thousands of them, and a unit leaves files of its own.
_PACK_ROWS = 50_000
_PACK_FILES = 256


@dataclass(frozen=True)
class Part:
    """A range of row groups of one Parquet file; `version` is the file's when it was planned, see `file_version`."""

    path: str
    first_group: int
    last_group: int
    version: str


@dataclass(frozen=True)
class Unit:
    """What a worker reads at once: a part of one file, or some small files.

    Attributes:
        name: the same in every run and unique in it.
    """

    name: str
    parts: tuple[Part, ...]
    rows: int


def plan_units(events: Path, rows_per_unit: int) -> list[Unit]:
    """Cuts the EVENTS files into units of about `rows_per_unit` rows, reading footers only.

    Raises:
        DataError: a file is not Parquet or has another schema.
    """
    paths = sorted(events.glob("date=*/*.parquet"))
    with ThreadPoolExecutor() as threads:
        of_files = threads.map(lambda path: _units_of(path, events, rows_per_unit), paths)
        return _packed([unit for units in of_files for unit in units], min(rows_per_unit, _PACK_ROWS))


def _packed(units: list[Unit], max_rows: int) -> list[Unit]:
    """The units with neighbours put together as long as they have at most so many rows."""
    packed: list[Unit] = []
    for unit in units:
        last = packed[-1] if packed else None
        if last is not None and last.rows + unit.rows <= max_rows and len(last.parts) < _PACK_FILES:
            packed[-1] = Unit(last.name, last.parts + unit.parts, last.rows + unit.rows)
        else:
            packed.append(unit)
    return packed


def file_version(path: str | Path) -> str:
    """What tells a file from one that was put in its place, or written over it, meanwhile."""
    status = os.stat(path)
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def check_unchanged(units: Iterable[Unit]) -> None:
    """Refuses files that are not those that were planned.

    Raises:
        DataError: names the first such file.
    """
    for path, version in sorted({(part.path, part.version) for unit in units for part in unit.parts}):
        try:
            found = file_version(path)
        except FileNotFoundError:
            raise DataError(
                f"{path}: was removed while it was read, or is on a disk that the workers do not share"
            ) from None
        if found != version:
            raise DataError(f"{path}: was replaced while it was read; run the stage again when nothing writes there")


def events_digest(events: Path) -> str:
    """Hex digest of the content of an EVENTS directory: its days and side tables, but not its account."""
    paths = sorted(events.rglob("*.parquet"))
    digests = zip(paths, file_entries(paths), strict=True)
    text = "".join(f"{path.relative_to(events)} {entry.sha256}\n" for path, entry in digests)
    return hashlib.sha256(text.encode()).hexdigest()


def _units_of(path: Path, events: Path, rows_per_unit: int) -> list[Unit]:
    try:
        version = file_version(path)
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
    check_schema(metadata.schema.to_arrow_schema(), EVENTS, str(path))
    stem = str(path.relative_to(events).with_suffix("")).replace("/", "-").replace("=", "-")
    units, first, rows = [], 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= rows_per_unit or group == metadata.num_row_groups - 1:
            part = Part(str(path.absolute()), first, group + 1, version)
            units.append(Unit(f"{stem}-{first:05d}", (part,), rows))
            first, rows = group + 1, 0
    return units


def read_unit(unit: Unit, columns: Sequence[str] = EVENTS.names) -> pa.Table:
    """The rows of a unit, schema EVENTS, or some of its columns.

    Raises:
        DataError: a file is damaged, or is another one than when it was planned.
    """
    tables = []
    for part in unit.parts:
        try:
            with pq.ParquetFile(part.path) as source:
                tables.append(read_part(source, part, columns))
        except (OSError, IndexError, pa.ArrowException) as error:
            check_unchanged([unit])
            problem = " ".join(str(error).split())
            raise DataError(f"{part.path}: cannot be read, run the ingest stage again: {problem}") from None
    check_unchanged([unit])
    return pa.concat_tables(tables)


def read_part(source: pq.ParquetFile, part: Part, columns: Sequence[str] = EVENTS.names) -> pa.Table:
    """The rows of a part of an open file, schema EVENTS, or some of its columns."""
    groups, schema = list(range(part.first_group, part.last_group)), pa.schema([EVENTS.field(c) for c in columns])
    return source.read_row_groups(groups, columns=list(columns), use_threads=False).select(columns).cast(schema)


def read_side_table(path: Path, key: str, categories: tuple[str, ...]) -> pa.Table:
    """USERS or ITEMS.

    Raises:
        DataError: the file is missing or damaged, or has other columns than the settings name.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the ingest stage again") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
    check_schema(table.schema, side_table_schema(key, categories), str(path))
    return table


def cut_of(events: Path, data: DataConfig) -> int:
    """UTC milliseconds at which the evaluation window begins."""
    last_day = datetime.date.fromisoformat(read_json(events / "stats.json")["last_day"])
    return evaluation_cut_ms(last_day, data.eval_days, data.timezone)
