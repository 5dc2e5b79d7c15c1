"""The workers' part of the stage `vocab`: how often each raw id occurs.

Counts take the claim check that events take in `streams`: a work unit's counts are split by id and spilled, and each
partition is added up by itself, so that no worker ever holds the ids of more than one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import one_array, take_rows
from features.hashing import shard_of
from pipelines.events import Unit, read_unit
from pipelines.spill import SpillRef, read_spill, write_spill
from pipelines.steps import Job, Step

COUNTED = {"user": "user_id", "item": "item_id", "surface": "surface"}
COUNTS = pa.schema([("key", pa.int64()), ("train", pa.int64()), ("eval", pa.int64())])
_ROWS_PER_PARTITION = 4_000_000
_MAX_PARTITIONS = 64

Place = tuple[str, int]


def num_partitions(num_rows: int) -> int:
    """Into how many parts the ids of so many events are split; it does not show in the counts."""
    return min(max(num_rows // _ROWS_PER_PARTITION, 1), _MAX_PARTITIONS)


class CountUnit(Step):
    """A work unit in, ((field, partition), reference to its counts) pairs out."""

    def __init__(self, cut_ms: int, partitions: int, directory: str) -> None:
        self._cut_ms = cut_ms
        self._partitions = partitions
        self._directory = directory

    def process(self, unit: Unit) -> Iterator[tuple[Place, SpillRef]]:
        """Counts the unit's ids on either side of the cut."""
        events = read_unit(unit, columns=("timestamp_ms", *COUNTED.values()))
        after = events.column("timestamp_ms").to_numpy() >= self._cut_ms
        for field, column in COUNTED.items():
            counts = count_keys(one_array(events.column(column)), after)
            partition = shard_of(counts.column("key").to_numpy(), self._partitions)
            for ref in write_spill(counts, partition, Path(self._directory), f"{unit.name}.{field}"):
                yield (field, ref.partition), ref


class AddCounts(Step):
    """((field, partition), references) in, the partition's total counts on disk."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, element: tuple[Place, Iterable[SpillRef]]) -> None:
        """Adds up one partition; a retried attempt writes the same bytes again."""
        (field, number), refs = element
        counts = add_counts(read_spill(refs))
        everything = np.zeros(len(counts), np.int16)
        write_spill(counts, everything, Path(self._directory), f"total.{field}.{number:03d}")


def count_keys(keys: pa.Array, after: np.ndarray) -> pa.Table:
    """How often each non-null value occurs where `after` is false and where it is true; schema COUNTS."""
    if keys.null_count:
        after = after[keys.is_valid().to_numpy(zero_copy_only=False)]
        keys = keys.drop_null()
    encoded = keys.dictionary_encode()
    indices, size = encoded.indices.to_numpy(), len(encoded.dictionary)
    late = np.bincount(indices[after], minlength=size) if after.any() else np.zeros(size, np.int64)
    total = np.bincount(indices, minlength=size)
    return pa.table([encoded.dictionary.cast(pa.int64()), total - late, late], schema=COUNTS)


def add_counts(counts: pa.Table) -> pa.Table:
    """Counts of distinct keys, ascending; `counts` may name a key many times."""
    encoded = pc.dictionary_encode(one_array(counts.column("key")))
    keys, indices = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    order = np.argsort(keys)
    # Sums of doubles are exact up to 2^53.
    sides = (np.bincount(indices, counts.column(side).to_numpy(), minlength=len(keys)) for side in ("train", "eval"))
    return pa.table([keys[order], *(side.astype(np.int64)[order] for side in sides)], schema=COUNTS)


def total_counts(directory: Path, field: str) -> pa.Table:
    """All of a field's counts that AddCounts left, ascending by key; schema COUNTS."""
    tables = [COUNTS.empty_table()]
    for path in sorted(directory.glob(f"total.{field}.*.arrow")):
        with pa.memory_map(str(path)) as source:
            tables.append(pa.ipc.open_file(source).read_all())
    counts = pa.concat_tables(tables).combine_chunks()
    # The partitions ascend each, which the stable sort makes use of.
    return take_rows(counts, np.argsort(counts.column("key").to_numpy(), kind="stable"))


def counting_job(units: list[Unit], cut_ms: int, *, work: Path) -> Job:
    """From work units to total counts in `work`."""
    count = CountUnit(cut_ms, num_partitions(sum(unit.rows for unit in units)), str(work))
    return Job(units, count, AddCounts(str(work)), key_type=tuple[str, int])
