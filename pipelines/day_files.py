"""The EVENTS files of a local day, written from its spilled batches."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.spill import SpillRef, read_spill

ROWS_PER_FILE = 2_000_000
ROWS_PER_GROUP = 500_000
# A larger day is sorted in runs of about so many rows, each in files of its own: 20 million take about 3 GB.
MAX_SORTED_ROWS = 20_000_000


def write_day(refs: Iterable[SpillRef], directory: Path) -> None:
    """Writes `part-NNN.parquet` files in (timestamp_ms, source_order) order; a retried attempt writes the same bytes.

    Args:
        refs: the day's rows; spill files are named so that their order is the order of source_order.
        directory: the day's folder.
    """
    directory.mkdir(exist_ok=True)
    part = 0
    for run in _runs(refs):
        rows = read_spill(run)
        # Stable, so rows of equal time stay in the order of source_order.
        order = np.argsort(rows["timestamp_ms"].to_numpy(), kind="stable")
        for start in range(0, len(order), ROWS_PER_FILE):
            table = rows.take(pa.array(order[start : start + ROWS_PER_FILE]))
            _write(table, directory / f"part-{part:03d}.parquet")
            part += 1


def _write(table: pa.Table, path: Path) -> None:
    """Renames when whole, for two attempts may run at once; syncing is up to whoever publishes the directory."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    pq.write_table(table, temporary, compression="zstd", row_group_size=ROWS_PER_GROUP)
    os.replace(temporary, path)


def count_rows(out: Path) -> dict[str, int]:
    """Rows of each day as the files' footers tell, by ISO date."""
    days: dict[str, int] = {}
    for path in sorted(out.glob("date=*/part-*.parquet")):
        day = path.parent.name.removeprefix("date=")
        days[day] = days.get(day, 0) + pq.read_metadata(path).num_rows
    return days


def _runs(refs: Iterable[SpillRef]) -> Iterator[list[SpillRef]]:
    run: list[SpillRef] = []
    for ref in sorted(refs, key=lambda ref: (ref.path, ref.batch)):
        if run and sum(held.rows for held in run) + ref.rows > MAX_SORTED_ROWS:
            yield run
            run = []
        run.append(ref)
    if run:
        yield run
