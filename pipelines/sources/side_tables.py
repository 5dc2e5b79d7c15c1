"""Static features of users and items: raw id and categories as normalised strings, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipelines.sources.checks import check_keys
from pipelines.sources.csv_text import LINE, line_texts, plan_csv, read_csv_unit
from pipelines.sources.parquet_rows import plan_parquet, read_parquet_unit, row_texts
from pipelines.sources.raw import RawFile, RawRows, SideTable, WorkUnit
from pipelines.sources.read import FIRST_CSV_ROW, FIRST_PARQUET_ROW, quarantine_rows

_ROWS_PER_UNIT = 500_000


def read_side_table(table: SideTable, file: RawFile) -> Iterator[RawRows]:
    """Reads one file of a side table block by block.

    Yields:
        `events` has the key under our name and one string column per category; `quarantine` the rows with a bad key.
    """
    if file.is_parquet:
        for unit in plan_parquet(file, _ROWS_PER_UNIT):
            yield _read_parquet(table, unit)
    else:
        for unit in plan_csv(file):
            yield from _read_csv(table, unit)


def category(raw: pl.Expr, part: int | None = None) -> pl.Expr:
    """A category as text: trimmed, `1.0` as `1`, empty as null; with `part`, that one of comma-separated values."""
    text = raw.cast(pl.String)
    if part is not None:
        text = text.str.split(",").list.get(part, null_on_oob=True)
    return text.str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "$1").replace("", None)


def _read_csv(table: SideTable, unit: WorkUnit) -> Iterator[RawRows]:
    dtypes: dict[str, pl.DataType] = {name: pl.String() for name in table.columns}
    for block in read_csv_unit(unit, {**dtypes, table.key_column: pl.Int64()}):
        rows, faults = check_keys(block.frame, table.key_column)
        faults = pl.concat([block.faults, faults]).sort(LINE)
        content = line_texts(block.data, faults[LINE].to_numpy()) if len(faults) else []
        row = pl.col(LINE) + (unit.first_row + block.first_line + FIRST_CSV_ROW)
        quarantine = quarantine_rows(unit.file, faults, row=row, content=content)
        yield RawRows(_selected(rows, table), quarantine, block.num_blank)


def _read_parquet(table: SideTable, unit: WorkUnit) -> RawRows:
    frame = read_parquet_unit(unit, table.columns)
    numbered = frame.with_row_index(LINE).with_columns(pl.col(LINE).cast(pl.Int64))
    rows, faults = check_keys(numbered, table.key_column)
    row = pl.col(LINE) + (unit.first_row + FIRST_PARQUET_ROW)
    content = row_texts(frame[faults[LINE]])
    return RawRows(_selected(rows, table), quarantine_rows(unit.file, faults, row=row, content=content), 0)


def _selected(rows: pl.DataFrame, table: SideTable) -> pl.DataFrame:
    categories = [category(pl.col(wanted.column), wanted.part).alias(wanted.name) for wanted in table.categories]
    key = pl.col(table.key_column).cast(pl.String).str.strip_chars().cast(pl.Int64)
    return rows.select(key.alias(table.key), *categories)
