"""JSON lines: an object a line that is a row, or that holds a list of rows; parsed fast, line by line where that fails.

Where a line holds rows, their fields are named `<list>.<field>`, as in `events.aid`; other names are the line's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json as pa_json

from features.errors import DataError
from pipelines.sources.lines import FAULT_SCHEMA, LINE, TextBlock, blocks, count_lines, line_starts, read_piece
from pipelines.sources.raw import FileForm, RawFile, WorkUnit

_ARROW_TYPES = {pl.Int64(): pa.int64(), pl.Float64(): pa.float64(), pl.String(): pa.string()}
_MAX_CONTENT_CHARS = 1000
_NO_FAULTS = pl.DataFrame(schema=FAULT_SCHEMA)


def open_jsonl(path: Path, name: str, rank: int, form: FileForm) -> RawFile:
    """Looks at the first line of a file, if it has one.

    Raises:
        DataError: it is not a JSON object.
    """
    with path.open("rb") as source:
        line = source.readline()
    try:
        first = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
    except ValueError:
        raise DataError(f"{name}: the first line is not JSON") from None
    if not isinstance(first, dict):
        raise DataError(f"{name}: the first line is JSON but not an object")
    return RawFile(os.fspath(path.absolute()), name, rank, (), form)


def read_jsonl_unit(unit: WorkUnit, dtypes: Mapping[str, pl.DataType]) -> Iterator[TextBlock]:
    """Parses a piece: at once when every line is well formed, in smaller blocks when not."""
    data, records = read_piece(unit), unit.file.form.records
    whole = _parse(data, dtypes, records)
    if whole is not None:
        yield TextBlock(data, 0, 0, whole, _NO_FAULTS, 0)
        return
    first_line = first_byte = 0
    for block in blocks(data):
        frame = _parse(block, dtypes, records)
        if frame is None:
            rows = _Lines(tuple(dtypes), records)
            rows.add_lines(block)
            yield TextBlock(block, first_line, first_byte, rows.frame(), rows.fault_frame(), rows.num_blank)
        else:
            yield TextBlock(block, first_line, first_byte, frame, _NO_FAULTS, 0)
        first_line += count_lines(block)
        first_byte += len(block)


def record_texts(data: bytes, keys: np.ndarray, records: str) -> list[str]:
    """The JSON of some rows of lines that hold several; of a line that cannot be read its beginning."""
    starts = line_starts(data)
    texts = []
    for key, line in zip(keys, np.searchsorted(starts, keys, side="right") - 1, strict=True):
        text = data[starts[line] :].split(b"\n", 1)[0].decode("utf-8", "replace")
        try:
            found = json.loads(text)
            row = {name: value for name, value in found.items() if name != records} | found[records][key - starts[line]]
            text = json.dumps(row, ensure_ascii=False)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            pass  # not a row: the line itself tells
        texts.append(text[:_MAX_CONTENT_CHARS])
    return texts


def _parse(data: bytes, dtypes: Mapping[str, pl.DataType], records: str | None) -> pl.DataFrame | None:
    """The wanted fields with their types, or None unless every line is an object of the right form."""
    try:
        table = pa_json.read_json(
            pa.BufferReader(data),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pa_json.ParseOptions(
                explicit_schema=_schema(dtypes, records), unexpected_field_behavior="ignore"
            ),
        ).combine_chunks()
    except pa.ArrowInvalid:
        return None
    if table.num_rows != count_lines(data):
        return None
    keys = pa.array(np.arange(len(table)))
    if records is not None:
        lists = table[records].combine_chunks()
        if lists.null_count:
            return None
        parents = lists.value_parent_indices().to_numpy()
        table, keys = _flatten(table, lists, parents, records), pa.array(_keys(data, parents))
    frame = pl.from_arrow(table.select(list(dtypes)))
    assert isinstance(frame, pl.DataFrame)
    return frame.insert_column(0, pl.Series(LINE, keys.to_numpy(), pl.Int64))


def _schema(dtypes: Mapping[str, pl.DataType], records: str | None) -> pa.Schema:
    inner = [] if records is None else [name for name in dtypes if name.startswith(f"{records}.")]
    fields = [pa.field(name, _ARROW_TYPES[dtype]) for name, dtype in dtypes.items() if name not in inner]
    if records is not None:
        members = [pa.field(name.removeprefix(f"{records}."), _ARROW_TYPES[dtypes[name]]) for name in inner]
        fields.append(pa.field(records, pa.list_(pa.struct(members))))
    return pa.schema(fields)


def _flatten(table: pa.Table, lists: pa.ListArray, parents: np.ndarray, records: str) -> pa.Table:
    rows = lists.flatten()
    columns = {name: table[name].take(pa.array(parents)) for name in table.column_names if name != records}
    columns |= {f"{records}.{member.name}": values for member, values in zip(rows.type, rows.flatten(), strict=True)}
    return pa.table(columns)


def _keys(data: bytes, parents: np.ndarray) -> np.ndarray:
    """Where a row's line begins, plus the row's place in the line: an object takes at least two bytes."""
    first = np.searchsorted(parents, parents)
    return line_starts(data)[parents] + np.arange(len(parents)) - first


@dataclass
class _Lines:
    """Rows read line by line, every wanted field as text."""

    wanted: tuple[str, ...]
    records: str | None
    keys: list[int] = field(default_factory=list)
    rows: list[list[str | None]] = field(default_factory=list)
    faults: list[tuple[int, str | None, str]] = field(default_factory=list)
    num_blank: int = 0

    def add_lines(self, data: bytes) -> None:
        start = 0
        for number, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
            key = number if self.records is None else start
            if line.strip():
                self._add_line(key, line)
            else:
                self.num_blank += 1
            start += len(line) + 1

    def _add_line(self, key: int, line: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            self.faults.append((key, None, "not JSON"))
            return
        if not isinstance(found, dict):
            self.faults.append((key, None, "not a JSON object"))
        elif self.records is None:
            self._add_row(key, found)
        elif not isinstance(found.get(self.records), list):
            self.faults.append((key, self.records, "not a list"))
        else:
            for place, row in enumerate(found[self.records]):
                if isinstance(row, dict):
                    self._add_row(key + place, found | {f"{self.records}.{name}": row[name] for name in row})
                else:
                    self.faults.append((key + place, self.records, "not a JSON object"))

    def _add_row(self, key: int, values: Mapping[str, Any]) -> None:
        self.keys.append(key)
        self.rows.append([_text(values.get(name)) for name in self.wanted])

    def frame(self) -> pl.DataFrame:
        rows = pl.DataFrame(self.rows, schema=dict.fromkeys(self.wanted, pl.String), orient="row")
        return rows.insert_column(0, pl.Series(LINE, self.keys, pl.Int64))

    def fault_frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.faults, schema=FAULT_SCHEMA, orient="row")


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return str(int(value)) if isinstance(value, bool) else json.dumps(value)
