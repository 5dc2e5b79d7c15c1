"""Reading a work unit: the pure function between a piece of a raw log and its events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from features.errors import DataError
from features.schema import EVENTS
from pipelines.sources.checks import check_rows
from pipelines.sources.forms import read_text_unit, row_contents, row_numbers
from pipelines.sources.lines import LINE, TextBlock, count_lines
from pipelines.sources.parquet_rows import read_parquet_unit, row_texts
from pipelines.sources.raw import QUARANTINE_SCHEMA, RANK_SHIFT, LogLayout, RawFile, RawRows, TimeRange, WorkUnit


def read_unit(unit: WorkUnit, layout: LogLayout, times: TimeRange) -> RawRows:
    """Reads and checks one piece of a log.

    Every row (but a blank line of a CSV file) is either in `events` or in `quarantine`.

    Raises:
        DataError: the file cannot be read at all, or has not the rows that it had when it was planned.
    """
    pieces = list((_read_parquet if unit.file.form.kind == "parquet" else _read_text)(unit, layout, times))
    events = pl.concat(piece.events for piece in pieces)
    quarantine = pl.concat(piece.quarantine for piece in pieces)
    return RawRows(events, quarantine, sum(piece.num_blank for piece in pieces))


def events_table(events: pl.DataFrame) -> pa.Table:
    """Events as an Arrow table of exactly the EVENTS schema."""
    return events.select(EVENTS.names).to_arrow().cast(EVENTS)


def text_quarantine(unit: WorkUnit, block: TextBlock, faults: pl.DataFrame) -> pl.DataFrame:
    """Rows of QUARANTINE_SCHEMA from the faults in a block of text."""
    form, keys = unit.file.form, faults[LINE].to_numpy()
    content = row_contents(block, keys, form)
    row = row_numbers(block, keys, form) + (unit.first_row + form.first_row)
    return quarantine_rows(unit.file, faults, row=row, content=content)


def quarantine_rows(file: RawFile, faults: pl.DataFrame, *, row: np.ndarray, content: list[str]) -> pl.DataFrame:
    """Rows of QUARANTINE_SCHEMA from faults and the numbers and texts of their rows."""
    return faults.select(
        pl.lit(file.name).alias("file"),
        pl.Series("row", row, pl.Int64),
        "column",
        "reason",
        pl.Series("content", content, pl.String),
    ).cast(QUARANTINE_SCHEMA)


def _read_text(unit: WorkUnit, layout: LogLayout, times: TimeRange) -> Iterator[RawRows]:
    holds_lists = unit.file.form.records is not None
    num_lines = 0
    for block in read_text_unit(unit, layout.dtypes):
        checked = check_rows(block.frame, layout, times)
        faults = pl.concat([block.faults, checked.faults]).sort(LINE)
        # Bytes where a line holds several rows, for they are known without counting the rows before.
        first = unit.start + block.first_byte if holds_lists else unit.first_row + block.first_line
        events = _ordered(checked.events, unit.file.rank, first)
        yield RawRows(events, text_quarantine(unit, block, faults), block.num_blank)
        num_lines += count_lines(block.data) if holds_lists else len(events) + len(faults) + block.num_blank
    check_count(unit, num_lines)


def _read_parquet(unit: WorkUnit, layout: LogLayout, times: TimeRange) -> Iterator[RawRows]:
    frame = read_parquet_unit(unit, layout.columns)
    numbered = frame.with_columns(pl.Series(LINE, np.arange(len(frame), dtype=np.int64)))
    checked = check_rows(numbered, layout, times)
    quarantine = quarantine_rows(
        unit.file,
        checked.faults,
        row=checked.faults[LINE].to_numpy() + (unit.first_row + unit.file.form.first_row),
        content=row_texts(frame[checked.faults[LINE]]),
    )
    yield RawRows(_ordered(checked.events, unit.file.rank, unit.first_row), quarantine, 0)
    check_count(unit, len(frame))


def check_count(unit: WorkUnit, num_found: int) -> None:
    """Refuses a piece that has not the rows that it had when it was planned.

    Raises:
        DataError: so it is.
    """
    if num_found != unit.num_counted:
        raise DataError(
            f"{unit.file.name}: {unit.num_counted} rows were counted from row {unit.first_row} on, but {num_found}"
            " were read; did the file change meanwhile?"
        )


def _ordered(events: pl.DataFrame, rank: int, first: int) -> pl.DataFrame:
    source_order = pl.col(LINE) + ((rank << RANK_SHIFT) + first)
    return events.with_columns(source_order.alias("source_order")).drop(LINE)
