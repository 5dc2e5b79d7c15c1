"""The workers' part of the stage `vocab`: how often each raw id occurs in a work unit.

It is a module of its own, apart from the stage's command, so that workers find its classes by their import path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import polars as pl

from pipelines.events import Unit, read_unit

COUNTED = {"user": "user_id", "item": "item_id", "surface": "surface"}


class CountUnit(beam.DoFn):
    """A work unit in, one small Parquet file of counts per field and side of the cut out."""

    def __init__(self, cut_ms: int, directory: str) -> None:
        self._cut_ms = cut_ms
        self._directory = directory

    def process(self, unit: Unit) -> Iterator[int]:
        """Counts the unit's keys and yields its number of rows."""
        events = pl.from_arrow(read_unit(unit))
        assert isinstance(events, pl.DataFrame)
        for field, column in COUNTED.items():
            counts = count_keys(events, column, self._cut_ms)
            counts.write_parquet(Path(self._directory) / f"{unit.name}.{field}.parquet")
        yield unit.rows


def count_keys(events: pl.DataFrame, column: str, cut_ms: int) -> pl.DataFrame:
    """Columns key, train, eval: how often each non-null value of `column` occurs before and after the cut."""
    after = pl.col("timestamp_ms") >= cut_ms
    return (
        events.lazy()
        .filter(pl.col(column).is_not_null())
        .group_by(pl.col(column).cast(pl.Int64).alias("key"))
        .agg(train=(~after).sum().cast(pl.Int64), eval=after.sum().cast(pl.Int64))
        .collect()
    )
