"""Reading the EVENTS directory that ingest wrote: its account, its days and its work units."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.calendar import evaluation_cut_ms
from features.config import DataConfig
from features.errors import DataError
from features.files import read_json
from features.schema import EVENTS, check_schema, side_table_schema


@dataclass(frozen=True)
class Unit:
    """A range of row groups of one Parquet file; `name` is the same in every run and unique in it."""

    path: str
    name: str
    first_group: int
    last_group: int
    rows: int


def plan_units(events: Path, rows_per_unit: int) -> list[Unit]:
    """Cuts the EVENTS files into units of about `rows_per_unit` rows, reading footers only.

    Raises:
        DataError: a file is not Parquet or has another schema.
    """
    return [unit for path in sorted(events.glob("date=*/*.parquet")) for unit in _units_of(path, events, rows_per_unit)]


def _units_of(path: Path, events: Path, rows_per_unit: int) -> list[Unit]:
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
    check_schema(metadata.schema.to_arrow_schema(), EVENTS, str(path))
    stem = str(path.relative_to(events).with_suffix("")).replace("/", "-").replace("=", "-")
    units, first, rows = [], 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= rows_per_unit or group == metadata.num_row_groups - 1:
            units.append(Unit(str(path.absolute()), f"{stem}-{first:05d}", first, group + 1, rows))
            first, rows = group + 1, 0
    return units


def read_unit(unit: Unit) -> pa.Table:
    """The rows of a unit, schema EVENTS.

    Raises:
        DataError: the file is damaged.
    """
    groups = list(range(unit.first_group, unit.last_group))
    try:
        with pq.ParquetFile(unit.path) as source:
            return source.read_row_groups(groups, columns=EVENTS.names, use_threads=False).cast(EVENTS)
    except (OSError, pa.ArrowException) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{unit.path}: cannot be read, run the ingest stage again: {problem}") from None


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
