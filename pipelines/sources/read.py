"""Reading a work unit: the pure function between a piece of a raw log and its events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from features.errors import DataError
from features.schema import EVENTS
from pipelines.sources.checks import check_rows
from pipelines.sources.csv_text import LINE, line_texts, read_csv_unit
from pipelines.sources.parquet_rows import read_parquet_unit, row_texts
from pipelines.sources.raw import QUARANTINE_SCHEMA, RANK_SHIFT, LogLayout, RawFile, RawRows, TimeRange, WorkUnit

# The row number that people see counts from 1; a CSV file's first line is its header.
FIRST_CSV_ROW = 2
FIRST_PARQUET_ROW = 1


def read_unit(unit: WorkUnit, layout: LogLayout, times: TimeRange) -> RawRows:
    """Reads and checks one piece of a log.

    Every row (but a blank line of a CSV file) is either in `events` or in `quarantine`.

    Raises:
        DataError: the file cannot be read at all, or has not the rows that it had when it was planned.
    """
    pieces = list((_read_parquet if unit.file.is_parquet else _read_csv)(unit, layout, times))
    events = pl.concat(piece.events for piece in pieces)
    quarantine = pl.concat(piece.quarantine for piece in pieces)
    num_blank = sum(piece.num_blank for piece in pieces)
    num_found = len(events) + len(quarantine) + num_blank
    if num_found != unit.num_rows:
        raise DataError(
            f"{unit.file.name}: {unit.num_rows} rows were counted from row {unit.first_row} on, but {num_found} were"
            " read; did the file change meanwhile?"
        )
    return RawRows(events, quarantine, num_blank)


def events_table(events: pl.DataFrame) -> pa.Table:
    """Events as an Arrow table of exactly the EVENTS schema."""
    return events.select(EVENTS.names).to_arrow().cast(EVENTS)


def quarantine_rows(file: RawFile, faults: pl.DataFrame, *, row: pl.Expr, content: list[str]) -> pl.DataFrame:
    """Rows of QUARANTINE_SCHEMA from faults and the text of their rows."""
    return faults.select(
        pl.lit(file.name).alias("file"),
        row.cast(pl.Int64).alias("row"),
        "column",
        "reason",
        pl.Series("content", content, pl.String),
    ).cast(QUARANTINE_SCHEMA)


def _read_csv(unit: WorkUnit, layout: LogLayout, times: TimeRange) -> Iterator[RawRows]:
    for block in read_csv_unit(unit, layout.dtypes):
        checked = check_rows(block.frame, layout, times)
        faults = pl.concat([block.faults, checked.faults]).sort(LINE)
        first_row = unit.first_row + block.first_line
        content = line_texts(block.data, faults[LINE].to_numpy()) if len(faults) else []
        quarantine = quarantine_rows(unit.file, faults, row=pl.col(LINE) + (first_row + FIRST_CSV_ROW), content=content)
        yield RawRows(_ordered(checked.events, unit.file.rank, first_row), quarantine, block.num_blank)


def _read_parquet(unit: WorkUnit, layout: LogLayout, times: TimeRange) -> Iterator[RawRows]:
    frame = read_parquet_unit(unit, layout.columns)
    numbered = frame.with_columns(pl.Series(LINE, np.arange(len(frame), dtype=np.int64)))
    checked = check_rows(numbered, layout, times)
    quarantine = quarantine_rows(
        unit.file,
        checked.faults,
        row=pl.col(LINE) + (unit.first_row + FIRST_PARQUET_ROW),
        content=row_texts(frame[checked.faults[LINE]]),
    )
    yield RawRows(_ordered(checked.events, unit.file.rank, unit.first_row), quarantine, 0)


def _ordered(events: pl.DataFrame, rank: int, first_row: int) -> pl.DataFrame:
    source_order = pl.col(LINE) + ((rank << RANK_SHIFT) + first_row)
    return events.with_columns(source_order.alias("source_order")).drop(LINE)
