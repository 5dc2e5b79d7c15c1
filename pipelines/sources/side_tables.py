"""Static features of users and items: raw id and categories as normalised strings, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipelines.sources.checks import check_keys
from pipelines.sources.forms import plan_units, read_text_unit
from pipelines.sources.lines import LINE
from pipelines.sources.parquet_rows import read_parquet_unit, row_texts
from pipelines.sources.raw import RawFile, RawRows, SideTable, WorkUnit
from pipelines.sources.read import quarantine_rows, text_quarantine

_ROWS_PER_UNIT = 500_000


def read_side_table(table: SideTable, file: RawFile) -> Iterator[RawRows]:
    """Reads one file of a side table block by block.

    Yields:
        `events` has the key under our name and one string column per category; `quarantine` the rows with a bad key.
    """
    for unit in plan_units(file, _ROWS_PER_UNIT):
        if file.form.kind == "parquet":
            yield _read_parquet(table, unit)
        else:
            yield from _read_text(table, unit)


def category(raw: pl.Expr, part: int | None = None, separator: str = ",") -> pl.Expr:
    """A category as text: trimmed, `1.0` as `1`, empty as null; with `part`, that one of several values."""
    text = raw.cast(pl.String)
    if part is not None:
        text = text.str.split(separator).list.get(part, null_on_oob=True)
    return text.str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "$1").replace("", None)


def _read_text(table: SideTable, unit: WorkUnit) -> Iterator[RawRows]:
    dtypes: dict[str, pl.DataType] = {name: pl.String() for name in table.columns}
    for block in read_text_unit(unit, {**dtypes, table.key_column: pl.Int64()}):
        rows, faults = check_keys(block.frame, table.key_column)
        faults = pl.concat([block.faults, faults]).sort(LINE)
        yield RawRows(_selected(rows, table), text_quarantine(unit, block, faults), block.num_blank)


def _read_parquet(table: SideTable, unit: WorkUnit) -> RawRows:
    frame = read_parquet_unit(unit, table.columns)
    numbered = frame.with_row_index(LINE).with_columns(pl.col(LINE).cast(pl.Int64))
    rows, faults = check_keys(numbered, table.key_column)
    row = faults[LINE].to_numpy() + (unit.first_row + unit.file.form.first_row)
    content = row_texts(frame[faults[LINE]])
    return RawRows(_selected(rows, table), quarantine_rows(unit.file, faults, row=row, content=content), 0)


def _selected(rows: pl.DataFrame, table: SideTable) -> pl.DataFrame:
    categories = [
        category(pl.col(wanted.column), wanted.part, wanted.separator).alias(wanted.name) for wanted in table.categories
    ]
    key = pl.col(table.key_column).cast(pl.String).str.strip_chars().cast(pl.Int64)
    return rows.select(key.alias(table.key), *categories)
