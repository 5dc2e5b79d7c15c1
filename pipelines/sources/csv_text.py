"""CSV text: parsed fast, and line by line where that fails.

A row of a log is one line: a line break inside quotes makes the lines around it bad rows.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from features.errors import DataError
from pipelines.sources.lines import (
    FAULT_SCHEMA,
    LINE,
    UNIT_SEPARATOR,
    TextBlock,
    blocks,
    count_lines,
    read_piece,
)
from pipelines.sources.raw import FileForm, RawFile, WorkUnit, header_hint

_ARROW_TYPES = {pl.Int64(): pa.int64(), pl.Float64(): pa.float64(), pl.String(): pa.string()}
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class CsvDialect:
    """The character between fields, and whether quotes may hold one."""

    delimiter: str = ","
    is_quoted: bool = True

    @classmethod
    def of(cls, form: FileForm) -> CsvDialect:
        """That of the text that `read_piece` gives."""
        return cls(form.separator) if len(form.separator) == 1 else cls(UNIT_SEPARATOR, is_quoted=False)


_COMMA = CsvDialect()


def open_csv(path: Path, name: str, rank: int, form: FileForm) -> RawFile:
    """Reads a CSV file's header, unless its form has one.

    Raises:
        DataError: the file has no header line, or it is not text or names a column twice.
    """
    columns = form.header if form.header is not None else _read_header(path, name, form)
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}: column '{twice[0]}' is in the header twice{header_hint(columns)}")
    return RawFile(os.fspath(path.absolute()), name, rank, columns, form)


def _read_header(path: Path, name: str, form: FileForm) -> tuple[str, ...]:
    with path.open("rb") as source:
        header = source.readline(_MAX_HEADER_BYTES)
    try:
        text = header.decode("utf-8-sig" if form.encoding == "utf-8" else form.encoding).strip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"{name}: the header line is not UTF-8 text") from None
    if not text.strip():
        raise DataError(f"{name}: no header line, the file is empty or begins with a blank line")
    if len(form.separator) > 1:
        return tuple(column.strip() for column in text.split(form.separator))
    return tuple(column.strip() for column in next(csv.reader([text], delimiter=form.separator)))


def read_csv_unit(unit: WorkUnit, dtypes: Mapping[str, pl.DataType]) -> Iterator[TextBlock]:
    """Parses a piece: at once when every line is well formed, in smaller blocks when not."""
    data, columns, dialect = read_piece(unit), unit.file.columns, CsvDialect.of(unit.file.form)
    whole = _parse(data, columns, dtypes, dialect=dialect)
    if whole is not None:
        yield TextBlock(data, 0, 0, whole, pl.DataFrame(schema=FAULT_SCHEMA), 0)
        return
    first_line = first_byte = 0
    for block in blocks(data):
        frame = _parse(block, columns, dtypes, dialect=dialect)
        if frame is None:
            rows = read_lines(block, columns, tuple(dtypes), dialect=dialect)
            yield replace(rows, first_line=first_line, first_byte=first_byte)
        else:
            yield TextBlock(block, first_line, first_byte, frame, pl.DataFrame(schema=FAULT_SCHEMA), 0)
        first_line += count_lines(block)
        first_byte += len(block)


def _parse(
    data: bytes, columns: tuple[str, ...], dtypes: Mapping[str, pl.DataType], *, dialect: CsvDialect = _COMMA
) -> pl.DataFrame | None:
    """The wanted columns with their types, or None unless every line is a row of the right form."""
    if pl.Int64() in dtypes.values() and (b"0x" in data or b"0X" in data):
        return None  # Arrow would take hexadecimal text for an integer.
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(column_names=list(columns), use_threads=False),
            parse_options=pa_csv.ParseOptions(
                delimiter=dialect.delimiter, quote_char='"' if dialect.is_quoted else False
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: _ARROW_TYPES[dtype] for name, dtype in dtypes.items()},
                include_columns=list(dtypes),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != count_lines(data):
        return None
    frame = pl.from_arrow(table, rechunk=True)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_row_index(LINE).with_columns(pl.col(LINE).cast(pl.Int64))


def read_lines(
    data: bytes, columns: tuple[str, ...], wanted: tuple[str, ...], *, dialect: CsvDialect = _COMMA
) -> TextBlock:
    """Sorts out the lines that have another number of fields; of the others every wanted column comes as text."""
    may_quote = dialect.is_quoted and b'"' in data
    block = None if may_quote else _count_fields(data, columns, wanted, dialect=dialect)
    return block or _split_fields(data, columns, wanted, dialect=dialect)


def _count_fields(
    data: bytes, columns: tuple[str, ...], wanted: tuple[str, ...], *, dialect: CsvDialect = _COMMA
) -> TextBlock | None:
    """Without quotes the commas tell; None when what is left does not parse, as with bytes that are not UTF-8."""
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    ends = ends if data.endswith(b"\n") else np.append(ends, len(data))
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts
    blank = (lengths == 0) | ((lengths == 1) & (text[starts] == ord("\r")))
    commas = np.flatnonzero(text == ord(dialect.delimiter))
    num_fields = 1 + np.diff(np.searchsorted(commas, np.append(0, ends)))
    good = ~blank & (num_fields == len(columns))
    rows = text[np.repeat(good, lengths + 1)[: len(data)]].tobytes()
    dtypes: dict[str, pl.DataType] = dict.fromkeys(wanted, pl.String())
    frame = _parse(rows, columns, dtypes, dialect=dialect) if rows else pl.DataFrame(schema={LINE: pl.Int64, **dtypes})
    if frame is None:
        return None
    bad = np.flatnonzero(~blank & ~good)
    reasons = np.where(num_fields[bad] < len(columns), "too few fields", "too many fields")
    faults = pl.DataFrame({LINE: bad, "column": [None] * len(bad), "reason": reasons.tolist()}, schema=FAULT_SCHEMA)
    frame = frame.with_columns(pl.Series(LINE, np.flatnonzero(good), pl.Int64))
    return TextBlock(data, 0, 0, frame, faults, int(blank.sum()))


def _split_fields(
    data: bytes, columns: tuple[str, ...], wanted: tuple[str, ...], *, dialect: CsvDialect = _COMMA
) -> TextBlock:
    rows: list[list[str]] = []
    lines: list[int] = []
    faults: list[tuple[int, None, str]] = []
    num_blank = 0
    for line, text in enumerate(data.removesuffix(b"\n").split(b"\n")):
        text = text.removesuffix(b"\r")
        if not text:
            num_blank += 1
            continue
        fields = _fields(text.decode("utf-8", "replace"), dialect)
        if fields is None or len(fields) != len(columns):
            faults.append((line, None, _fault(fields, len(columns))))
        else:
            rows.append(fields)
            lines.append(line)
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    frame = pl.DataFrame(
        {name: values[columns.index(name)] for name in wanted}, schema=dict.fromkeys(wanted, pl.String)
    )
    frame = frame.with_columns(pl.col(pl.String).replace("", None)).insert_column(0, pl.Series(LINE, lines, pl.Int64))
    return TextBlock(data, 0, 0, frame, pl.DataFrame(faults, schema=FAULT_SCHEMA, orient="row"), num_blank)


def _fields(text: str, dialect: CsvDialect) -> list[str] | None:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.is_quoted else csv.QUOTE_NONE
    try:
        return next(csv.reader((text,), strict=True, delimiter=dialect.delimiter, quoting=quoting))
    except csv.Error:
        return None


def _fault(fields: list[str] | None, expected: int) -> str:
    if fields is None:
        return "stray quote or carriage return"
    return "too few fields" if len(fields) < expected else "too many fields"
