"""EVENTS directories of few rows, and what the stage made of them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.dataset import open_dataset
from features.files import write_json
from features.schema import EVENTS, side_table_schema

Build = Callable[..., Path]
DAY_MS = 86_400_000
NUM_DAYS = 5
NUM_ROWS = 600


def make_events(num_rows: int = NUM_ROWS, seed: int = 1) -> pa.Table:
    """Events of few users and items over five days but the third, with pages and 30 exact duplicates."""
    rng = np.random.default_rng(seed)
    num_rows -= 30
    days = rng.choice([0, 1, 3, 4], num_rows)
    columns: dict[str, np.ndarray] = {
        "user_id": rng.integers(0, 25, num_rows) * 1_000_003,
        "item_id": rng.integers(0, 9, num_rows),
        "timestamp_ms": days * DAY_MS + rng.integers(0, 20, num_rows) * 4_000_000,
        "action_mask": rng.choice([0, 1, 2, 128, 3], num_rows),
        "watch_ms": rng.integers(0, 9000, num_rows),
        "duration_ms": rng.integers(0, 9000, num_rows),
        "surface": rng.integers(0, 3, num_rows),
    }
    repeats = rng.integers(0, num_rows, 30)
    arrays = []
    for field in EVENTS:
        if field.name == "source_order":
            arrays.append(pa.array(np.arange(num_rows + 30), field.type))
        elif field.name == "value":
            arrays.append(pa.nulls(num_rows + 30, field.type))
        else:
            values = columns[field.name]
            arrays.append(pa.array(np.concatenate([values, values[repeats]]), field.type))
    return pa.table(arrays, schema=EVENTS)


def write_events(directory: Path, events: pa.Table, *, rows_per_file: int = 10**9, rows_per_group: int = 50) -> None:
    """The EVENTS directory of these rows: by day, in the order in which they come."""
    days = events.column("timestamp_ms").to_numpy() // DAY_MS
    directory.mkdir()
    for day in np.unique(days).tolist():
        folder = directory / f"date={datetime.date(1970, 1, 1 + day)}"
        folder.mkdir()
        rows = events.filter(pa.array(days == day))
        for part, start in enumerate(range(0, rows.num_rows, rows_per_file)):
            pq.write_table(
                rows.slice(start, rows_per_file), folder / f"part-{part:03d}.parquet", row_group_size=rows_per_group
            )
    items = [[0, 1, 2, 3], ["a", "b", "c", None]]
    pq.write_table(pa.table(items, schema=side_table_schema("item_id", ("author",))), directory / "items.parquet")
    users = [[0, 1_000_003], ["new", "old"]]
    pq.write_table(pa.table(users, schema=side_table_schema("user_id", ("degree",))), directory / "users.parquet")
    write_json(directory / "stats.json", {"last_day": "1970-01-05"})


def content(directory: Path) -> str:
    return open_dataset(directory).manifest.content_checksum


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
