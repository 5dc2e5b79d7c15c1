"""The claim check: rows wait in Arrow files while only references to them travel through the shuffle."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.columns import take_rows


class SpillRef(NamedTuple):
    """Rows of one partition in one spill file: record batch `batch` of the Arrow IPC file at `path`."""

    partition: int
    path: str
    batch: int
    rows: int


def spill_path(directory: Path, name: str) -> Path:
    """Where the rows of a work unit are once they are spilled."""
    return directory / f"{name}.arrow"


def write_spill(table: pa.Table, partition: np.ndarray, directory: Path, name: str) -> list[SpillRef]:
    """Writes `spill_path(directory, name)`, one record batch per partition that has rows.

    A retried bundle writes the same name again and so replaces the file with the same bytes.

    Args:
        table: N rows; the order of a partition's rows is kept.
        partition: (N,) partition number of each row, in [0, 32768).
        directory: reachable by whoever reads the references.
        name: unique to the work unit and the same on every attempt.

    Returns:
        One reference per batch, ascending by partition.
    """
    directory.mkdir(parents=True, exist_ok=True)
    numbers = np.asarray(partition).astype(np.int16)  # 16-bit keys make numpy's stable sort a radix sort
    counts = np.bincount(numbers, minlength=1)
    present = np.flatnonzero(counts)
    ends = np.cumsum(counts)[present]
    rows = take_rows(table, np.argsort(numbers, kind="stable"))
    path = spill_path(directory, name)
    # Renamed when whole, for a reader may meet a second attempt; never synced, for no spill outlives its run.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for end, count in zip(ends, counts[present], strict=True):
            writer.write_table(rows.slice(end - count, count))
    os.replace(temporary, path)
    return [SpillRef(int(number), os.fspath(path), batch, int(counts[number])) for batch, number in enumerate(present)]


def read_spill(refs: Iterable[SpillRef]) -> pa.Table:
    """The rows of all references, memory-mapped, ordered by path and batch whatever the order of `refs`.

    `refs` may be a one-pass iterable, as a grouping runner gives; it must not be empty.
    """
    tables = []
    for ref in sorted(refs, key=lambda ref: (ref.path, ref.batch)):
        with pa.memory_map(ref.path) as source:
            batch = pa.ipc.open_file(source).get_batch(ref.batch)
        if batch.num_rows != ref.rows:
            raise RuntimeError(f"{ref.path}: batch {ref.batch} has {batch.num_rows} rows, {ref.rows} were written")
        tables.append(pa.Table.from_batches([batch]))
    return pa.concat_tables(tables)
