"""The bare script that the streams stage is held against: sorts, dedupes and groups EVENTS and does nothing else.

python -m pipelines.bench.polars_group EVENTS OUT VARIANT
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import polars as pl

_KEYS = ["user_id", "timestamp_ms", "item_id", "action_mask", "watch_ms", "duration_ms", "surface"]
_DESCENDING = [False, *[True] * (len(_KEYS) - 1)]


def _sorted_runs(events: pl.LazyFrame) -> pl.LazyFrame:
    changes = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in _KEYS)
    return (
        events.sort(_KEYS, descending=_DESCENDING)
        .filter(changes)
        .group_by("user_id", maintain_order=True)
        .agg(pl.all())
    )


def _unique_then_sort(events: pl.LazyFrame) -> pl.LazyFrame:
    ordered = events.unique().sort(_KEYS[:2], descending=_DESCENDING[:2])
    return ordered.group_by("user_id", maintain_order=True).agg(pl.all())


def _sort_in_groups(events: pl.LazyFrame) -> pl.LazyFrame:
    newest_first = pl.exclude("user_id").sort_by(_KEYS[1:], descending=True)
    return events.unique().group_by("user_id").agg(newest_first).sort("user_id")


# The variants that were fastest in one size or the other; the benchmark takes the best of them.
VARIANTS: dict[str, Callable[[pl.LazyFrame], pl.LazyFrame]] = {
    "sorted-runs": _sorted_runs,
    "unique-then-sort": _unique_then_sort,
    "sort-in-groups": _sort_in_groups,
}


def main() -> None:
    """One row per user with list columns, as zstd Parquet."""
    source, out, variant = sys.argv[1:]
    events = pl.scan_parquet(f"{source}/date=*/*.parquet", hive_partitioning=False).select(_KEYS)
    VARIANTS[variant](events).sink_parquet(out, engine="streaming", row_group_size=256, compression="zstd")


if __name__ == "__main__":
    main()
