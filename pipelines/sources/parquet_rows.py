"""Parquet files as row-group ranges, and the types that each use of a column accepts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from features.errors import DataError
from pipelines.sources.raw import FileForm, LogLayout, RawFile, WorkUnit


def open_parquet(path: Path, name: str, rank: int, form: FileForm) -> RawFile:
    """Reads a Parquet file's footer.

    Raises:
        DataError: the file has no readable footer: it is half-written or not Parquet.
    """
    return RawFile(os.fspath(path.absolute()), name, rank, tuple(_schema(path, name).names), form)


def plan_parquet(file: RawFile, rows_per_unit: int) -> Iterator[WorkUnit]:
    """Row-group ranges of at least `rows_per_unit` rows each, the last one excepted."""
    metadata = _metadata(Path(file.path), file.name)
    start = first_row = num_rows = 0
    for group in range(metadata.num_row_groups):
        num_rows += metadata.row_group(group).num_rows
        if num_rows >= rows_per_unit or group == metadata.num_row_groups - 1:
            yield WorkUnit(file, start, group + 1, first_row, num_rows, num_rows)
            start, first_row, num_rows = group + 1, first_row + num_rows, 0


def read_parquet_unit(unit: WorkUnit, columns: tuple[str, ...]) -> pl.DataFrame:
    """The wanted columns of a range of row groups, those that the file's form gives a constant among them."""
    constants = [pl.lit(value, pl.String).alias(name) for name, value in unit.file.form.constants if name in columns]
    absent = {name for name, _ in unit.file.form.constants}
    present = [name for name in columns if name not in absent]
    try:
        with pq.ParquetFile(unit.file.path) as source:
            table = source.read_row_groups(range(unit.start, unit.stop), columns=present, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{unit.file.name}: unreadable Parquet, is it half-written? {_first_line(error)}") from None
    frame = pl.from_arrow(table.select(present), rechunk=True)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(constants).select(columns)


def check_types(file: RawFile, layout: LogLayout) -> None:
    """Refuses columns of a type that their use cannot have.

    Raises:
        DataError: names the file, the column, its type and what was expected.
    """
    schema = _schema(Path(file.path), file.name)
    number = _either(pt.is_integer, pt.is_floating)
    uses: list[tuple[str | None, Callable[[pa.DataType], bool], str]] = [
        (layout.user_id, pt.is_integer, "an integer"),
        (layout.item_id, pt.is_integer, "an integer"),
        (layout.timestamp, _either(number, pt.is_timestamp), "a number or a timestamp"),
        *((column, _either(pt.is_integer, pt.is_boolean), "an integer or a boolean") for column, _ in layout.flags),
        *((action.column, number, "a number") for action in layout.ranges),
        (layout.watch_ms, number, "a number"),
        (layout.watch_percent, number, "a number"),
        (layout.duration_ms, number, "a number"),
        (layout.duration_s, number, "a number"),
        (layout.value, number, "a number"),
        (layout.surface, pt.is_integer, "an integer"),
    ]
    for column, accepts, expected in uses:
        if column in file.columns and not accepts(schema.field(column).type):
            found = schema.field(column).type
            raise DataError(f"{file.name}: column '{column}' has type {found}, expected {expected}")


def row_texts(rows: pl.DataFrame) -> list[str]:
    """Each row as JSON."""
    return [json.dumps(row, default=str, ensure_ascii=False) for row in rows.iter_rows(named=True)]


def _either(*accepts: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda dtype: any(accept(dtype) for accept in accepts)


def _metadata(path: Path, name: str) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: unreadable Parquet, is it half-written? {_first_line(error)}") from None


def _schema(path: Path, name: str) -> pa.Schema:
    return _metadata(path, name).schema.to_arrow_schema()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
