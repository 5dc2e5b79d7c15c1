"""Files of every form behind the same three steps: open one, cut it into work units, read the text of a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.sources.csv_text import open_csv, read_csv_unit
from pipelines.sources.json_lines import open_jsonl, read_jsonl_unit, record_texts
from pipelines.sources.lines import TextBlock, line_starts, line_texts, plan_lines
from pipelines.sources.parquet_rows import open_parquet, plan_parquet
from pipelines.sources.raw import FileForm, RawFile, WorkUnit

_OPENERS = {"csv": open_csv, "jsonl": open_jsonl, "parquet": open_parquet}


def open_file(path: Path, name: str, rank: int, form: FileForm) -> RawFile:
    """Reads a file's header or footer.

    Raises:
        DataError: the file is not of the form.
    """
    return _OPENERS[form.kind](path, name, rank, form)


def plan_units(file: RawFile, rows_per_unit: int) -> Iterator[WorkUnit]:
    """Cuts a file into work units and counts its rows, for which text has to be read once.

    Args:
        file: what to cut.
        rows_per_unit: of a Parquet file, whose row groups stay whole; text is cut by bytes.
    """
    return plan_parquet(file, rows_per_unit) if file.form.kind == "parquet" else plan_lines(file)


def read_text_unit(unit: WorkUnit, dtypes: Mapping[str, pl.DataType]) -> Iterator[TextBlock]:
    """Parses a piece of a text file, one block after the other."""
    return (read_csv_unit if unit.file.form.kind == "csv" else read_jsonl_unit)(unit, dtypes)


def row_numbers(block: TextBlock, keys: np.ndarray, form: FileForm) -> np.ndarray:
    """Lines of the piece before the line of each row; `keys` are values of the block's LINE."""
    if form.records is not None:
        keys = np.searchsorted(line_starts(block.data), keys, side="right") - 1
    return keys + block.first_line


def row_contents(block: TextBlock, keys: np.ndarray, form: FileForm) -> list[str]:
    """The text of some rows as the quarantine keeps it."""
    if not len(keys):
        return []
    return line_texts(block.data, keys, form) if form.records is None else record_texts(block.data, keys, form.records)
