"""Work units of EVENTS: small files together, large ones in parts, every row once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.events
from features.schema import EVENTS
from pipelines.events import plan_units, read_unit


def write_days(events: Path, sizes: list[int]) -> None:
    first = 0
    for day, size in enumerate(sizes):
        columns = {field.name: np.arange(first, first + size) for field in EVENTS}
        folder = events / f"date=2020-01-{day + 1:02d}"
        folder.mkdir(parents=True)
        table = pa.table([pa.array(columns[field.name]).cast(field.type) for field in EVENTS], schema=EVENTS)
        pq.write_table(table, folder / "part-000.parquet", row_group_size=40)
        first += size


@pytest.mark.parametrize(
    ("rows_per_unit", "max_files", "expected"),
    [(1000, 256, [90, 120, 30]), (1000, 2, [60, 30, 120, 30]), (50, 256, [30, 30, 30, 80, 40, 30])],
)
def test_small_days_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_unit: int, max_files: int, expected: list[int]
) -> None:
    monkeypatch.setattr(pipelines.events, "_PACK_ROWS", 100)
    monkeypatch.setattr(pipelines.events, "_PACK_FILES", max_files)
    write_days(tmp_path, [30, 30, 30, 120, 30])
    units = plan_units(tmp_path, rows_per_unit)
    assert [unit.rows for unit in units] == expected
    assert len({unit.name for unit in units}) == len(units)
    tables = [read_unit(unit) for unit in units]
    assert [len(table) for table in tables] == expected
    assert pa.concat_tables(tables)["source_order"].to_pylist() == list(range(240))
