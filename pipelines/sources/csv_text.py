"""CSV text in pieces of whole lines: planned without parsing, parsed fast, and line by line where that fails.

A row of a log is one line: a line break inside quotes makes the lines around it bad rows.
"""

from __future__ import annotations

import csv
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from features.errors import DataError
from pipelines.sources.raw import RawFile, WorkUnit, header_hint

# Constant, so that pieces never depend on settings; a piece's text and columns take about five times as much memory.
UNIT_BYTES = 32 << 20
# When a piece has lines that do not parse, only the blocks that hold them are read as text.
BLOCK_BYTES = 1 << 20
LINE = "line"
FAULT_SCHEMA = pl.Schema({LINE: pl.Int64, "column": pl.String, "reason": pl.String})

_ARROW_TYPES = {pl.Int64(): pa.int64(), pl.Float64(): pa.float64(), pl.String(): pa.string()}
_MAX_HEADER_BYTES = 1 << 20
_MAX_CONTENT_CHARS = 1000


@dataclass(frozen=True)
class TextBlock:
    """The rows of some consecutive lines.

    Attributes:
        data: the lines.
        first_line: number of the piece's lines before the block.
        frame: the wanted columns, parsed or (where that failed) as text, and LINE, each row's line in the block.
        faults: FAULT_SCHEMA, the lines that cannot be split into fields.
        num_blank: blank lines.
    """

    data: bytes
    first_line: int
    frame: pl.DataFrame
    faults: pl.DataFrame
    num_blank: int


def open_csv(path: Path, name: str, rank: int) -> RawFile:
    """Reads a CSV file's header.

    Raises:
        DataError: the file has no header line, or it is not text or names a column twice.
    """
    with path.open("rb") as source:
        header = source.readline(_MAX_HEADER_BYTES)
    try:
        text = header.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"{name}: the header line is not UTF-8 text") from None
    if not text.strip():
        raise DataError(f"{name}: no header line, the file is empty or begins with a blank line")
    columns = tuple(column.strip() for column in next(csv.reader([text])))
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}: column '{twice[0]}' is in the header twice{header_hint(columns)}")
    return RawFile(os.fspath(path.absolute()), name, rank, columns)


def plan_csv(file: RawFile) -> Iterator[WorkUnit]:
    """Cuts a file after its header at line ends into pieces of about UNIT_BYTES, counting their lines."""
    size = os.path.getsize(file.path)
    with open(file.path, "rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = text.find(b"\n") + 1 or size
        first_row = 0
        while start < size:
            stop = min(start + UNIT_BYTES, size)
            stop = (text.find(b"\n", stop - 1) + 1 or size) if stop < size else size
            data = text[start:stop]
            num_rows = data.count(b"\n") + (not data.endswith(b"\n"))
            yield WorkUnit(file, start, stop, first_row, num_rows)
            first_row += num_rows
            start = stop


def read_csv_unit(unit: WorkUnit, dtypes: Mapping[str, pl.DataType]) -> Iterator[TextBlock]:
    """Parses a piece: at once when every line is well formed, in smaller blocks when not."""
    with open(unit.file.path, "rb") as source:
        source.seek(unit.start)
        data = source.read(unit.stop - unit.start)
    whole = _parse(data, unit.file.columns, dtypes)
    if whole is not None:
        yield TextBlock(data, 0, whole, pl.DataFrame(schema=FAULT_SCHEMA), 0)
        return
    first_line = 0
    for block in _blocks(data):
        frame = _parse(block, unit.file.columns, dtypes)
        if frame is None:
            yield read_lines(block, first_line, unit.file.columns, wanted=tuple(dtypes))
        else:
            yield TextBlock(block, first_line, frame, pl.DataFrame(schema=FAULT_SCHEMA), 0)
        first_line += _count_lines(block)


def line_texts(data: bytes, lines: np.ndarray) -> list[str]:
    """The text of some lines, shortened when very long."""
    ends = np.append(np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")), len(data))
    starts = np.append(0, ends + 1)
    return [
        data[starts[line] : ends[line]].decode("utf-8", "replace").rstrip("\r")[:_MAX_CONTENT_CHARS] for line in lines
    ]


def _count_lines(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n"))


def _blocks(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        stop = data.find(b"\n", start + BLOCK_BYTES - 1) + 1 or len(data)
        yield data[start:stop]
        start = stop


def _parse(data: bytes, columns: tuple[str, ...], dtypes: Mapping[str, pl.DataType]) -> pl.DataFrame | None:
    """The wanted columns with their types, or None unless every line is a row of the right form."""
    if pl.Int64() in dtypes.values() and (b"0x" in data or b"0X" in data):
        return None  # Arrow would take hexadecimal text for an integer.
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(column_names=list(columns), use_threads=False),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: _ARROW_TYPES[dtype] for name, dtype in dtypes.items()},
                include_columns=list(dtypes),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != _count_lines(data):
        return None
    frame = pl.from_arrow(table, rechunk=True)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_row_index(LINE).with_columns(pl.col(LINE).cast(pl.Int64))


def read_lines(data: bytes, first_line: int, columns: tuple[str, ...], *, wanted: tuple[str, ...]) -> TextBlock:
    """Sorts out the lines that have another number of fields; of the others every wanted column comes as text."""
    block = None if b'"' in data else _count_fields(data, first_line, columns, wanted=wanted)
    return block or _split_fields(data, first_line, columns, wanted=wanted)


def _count_fields(
    data: bytes, first_line: int, columns: tuple[str, ...], *, wanted: tuple[str, ...]
) -> TextBlock | None:
    """Without quotes the commas tell; None when what is left does not parse, as with bytes that are not UTF-8."""
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    ends = ends if data.endswith(b"\n") else np.append(ends, len(data))
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts
    blank = (lengths == 0) | ((lengths == 1) & (text[starts] == ord("\r")))
    num_fields = 1 + np.diff(np.searchsorted(np.flatnonzero(text == ord(",")), np.append(0, ends)))
    good = ~blank & (num_fields == len(columns))
    rows = text[np.repeat(good, lengths + 1)[: len(data)]].tobytes()
    dtypes: dict[str, pl.DataType] = dict.fromkeys(wanted, pl.String())
    frame = _parse(rows, columns, dtypes) if rows else pl.DataFrame(schema={LINE: pl.Int64, **dtypes})
    if frame is None:
        return None
    bad = np.flatnonzero(~blank & ~good)
    reasons = np.where(num_fields[bad] < len(columns), "too few fields", "too many fields")
    faults = pl.DataFrame({LINE: bad, "column": [None] * len(bad), "reason": reasons.tolist()}, schema=FAULT_SCHEMA)
    frame = frame.with_columns(pl.Series(LINE, np.flatnonzero(good), pl.Int64))
    return TextBlock(data, first_line, frame, faults, int(blank.sum()))


def _split_fields(data: bytes, first_line: int, columns: tuple[str, ...], *, wanted: tuple[str, ...]) -> TextBlock:
    rows: list[list[str]] = []
    lines: list[int] = []
    faults: list[tuple[int, None, str]] = []
    num_blank = 0
    for line, text in enumerate(data.removesuffix(b"\n").split(b"\n")):
        text = text.removesuffix(b"\r")
        if not text:
            num_blank += 1
            continue
        fields = _fields(text.decode("utf-8", "replace"))
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
    return TextBlock(data, first_line, frame, pl.DataFrame(faults, schema=FAULT_SCHEMA, orient="row"), num_blank)


def _fields(text: str) -> list[str] | None:
    try:
        return next(csv.reader((text,), strict=True))
    except csv.Error:
        return None


def _fault(fields: list[str] | None, expected: int) -> str:
    if fields is None:
        return "stray quote or carriage return"
    return "too few fields" if len(fields) < expected else "too many fields"
