"""Text files in pieces of whole lines: planned by counting line ends, read without what is after them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.errors import DataError
from pipelines.sources.raw import FileForm, RawFile, WorkUnit

# Constant, so that pieces never depend on settings; a piece's text and columns take about five times as much memory.
UNIT_BYTES = 32 << 20
# When a piece has lines that do not parse, only the blocks that hold them are read line by line.
BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 64 << 20
# Readers know separators of one character: a longer one becomes this one, which text does not use.
UNIT_SEPARATOR = "\x1f"
LINE = "line"
FAULT_SCHEMA = pl.Schema({LINE: pl.Int64, "column": pl.String, "reason": pl.String})

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_CONTENT_CHARS = 1000


@dataclass(frozen=True)
class TextBlock:
    """The rows of some consecutive lines.

    Attributes:
        data: the lines.
        first_line: number of the piece's lines before the block.
        first_byte: number of the piece's bytes before the block.
        frame: the wanted columns, parsed or (where that failed) as text, and LINE: each row's line in the block, or,
            where a line holds several rows, the byte at which its line begins plus the row's place in it.
        faults: FAULT_SCHEMA, the lines that cannot be split into fields.
        num_blank: blank lines.
    """

    data: bytes
    first_line: int
    first_byte: int
    frame: pl.DataFrame
    faults: pl.DataFrame
    num_blank: int


def plan_lines(file: RawFile) -> Iterator[WorkUnit]:
    """Cuts a file after its header at line ends into pieces of about UNIT_BYTES, counting their lines.

    Raises:
        DataError: a line is longer than MAX_LINE_BYTES.
    """
    with open(file.path, "rb") as source:
        if file.form.kind == "csv" and file.form.header is None:
            source.readline()
        start, first_row = source.tell(), 0
        while data := source.read(UNIT_BYTES):
            num_bytes, num_lines = len(data), data.count(b"\n")
            num_records = data.count(b"{") if file.form.records else 0
            if not data.endswith(b"\n"):
                rest = _finish_line(source.readline(MAX_LINE_BYTES), file.name)
                num_bytes, num_lines = num_bytes + len(rest), num_lines + 1
                num_records += rest.count(b"{") if file.form.records else 0
            num_rows = max(0, num_records - num_lines) if file.form.records else num_lines
            yield WorkUnit(file, start, start + num_bytes, first_row, num_lines, num_rows)
            start, first_row = start + num_bytes, first_row + num_lines


def _finish_line(rest: bytes, name: str) -> bytes:
    if len(rest) == MAX_LINE_BYTES:
        raise DataError(f"{name}: a line is longer than {MAX_LINE_BYTES >> 20} MB; is this a log of one row a line?")
    return rest


def read_piece(unit: WorkUnit) -> bytes:
    """A piece's lines in UTF-8, with separators of one character."""
    with open(unit.file.path, "rb") as source:
        source.seek(unit.start)
        data = source.read(unit.stop - unit.start)
    form = unit.file.form
    if unit.start == 0:
        data = data.removeprefix(_BYTE_ORDER_MARK)
    if len(form.separator) > 1:
        data = data.replace(form.separator.encode(), UNIT_SEPARATOR.encode())
    return data.decode("latin-1").encode() if form.encoding == "latin-1" else data


def blocks(data: bytes) -> Iterator[bytes]:
    """Whole lines of about BLOCK_BYTES each."""
    start = 0
    while start < len(data):
        stop = data.find(b"\n", start + BLOCK_BYTES - 1) + 1 or len(data)
        yield data[start:stop]
        start = stop


def count_lines(data: bytes) -> int:
    """Lines, the last one with or without an end."""
    return data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))


def line_starts(data: bytes) -> np.ndarray:
    """The byte at which each line begins; one more where the text ends with a line end."""
    return np.append(0, np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1)


def line_texts(data: bytes, lines: np.ndarray, form: FileForm | None = None) -> list[str]:
    """The text of some lines, shortened when very long."""
    starts = np.append(line_starts(data), len(data) + 1)
    texts = [data[starts[line] : starts[line + 1] - 1].decode("utf-8", "replace") for line in lines]
    if form is not None and len(form.separator) > 1:
        texts = [text.replace(UNIT_SEPARATOR, form.separator) for text in texts]
    return [text.rstrip("\r\n")[:_MAX_CONTENT_CHARS] for text in texts]
