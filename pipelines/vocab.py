"""The stage `vocab`: training days of EVENTS in, one append-only vocabulary per embedded field out."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from features.files import atomic_directory, write_json
from features.schema import check_schema, side_table_schema
from features.vocabulary import Vocabulary, VocabularySet, extend
from pipelines.config import PipelinesConfig
from pipelines.engine import run_job, run_stage
from pipelines.events import Unit, cut_of, plan_units
from pipelines.key_counts import COUNTED, counting_job, total_counts

_LOG = logging.getLogger(__name__)
_SIDES = ("train", "eval")


def category_counts(counts: pl.DataFrame, side: pa.Table, key: str, *, category: str) -> pl.DataFrame:
    """Counts of a category's values: those of the ids that carry them. Columns key (string), train, eval."""
    table = pl.from_arrow(side.select([key, category]))
    assert isinstance(table, pl.DataFrame)
    joined = counts.join(table.rename({key: "key", category: "value"}), on="key", how="inner")
    return (
        joined.filter(pl.col("value").is_not_null())
        .group_by(pl.col("value").alias("key"))
        .agg(pl.col("train", "eval").sum())
        .sort("key")
    )


def build_vocabularies(params: Path, events: Path, out: Path) -> None:
    """Runs the stage.

    Raises:
        DataError: there are no training days, or an input is missing or damaged.
    """
    data, features, config = DataConfig.load(params), FeaturesConfig.load(params), PipelinesConfig.load(params)
    cut_ms = cut_of(events, data)
    base = None if features.vocabulary.base is None else VocabularySet.load(features.vocabulary.base)
    units = plan_units(events, config.rows_per_unit)
    with atomic_directory(out) as temporary:
        work = temporary / "work"
        work.mkdir()
        run_job(counting_job(units, cut_ms, work=work), config)
        counts = {field: _frame(total_counts(work, field)) for field in COUNTED}
        _check_counts(counts["user"], units, events, data=data)
        shutil.rmtree(work)
        counts |= _side_counts(counts["item"], "item_id", events / "items.parquet", features.item_categories)
        counts |= _side_counts(counts["user"], "user_id", events / "users.parquet", features.user_categories)
        fields = {field: _extend(base, field, count, features.vocabulary.min_count) for field, count in counts.items()}
        VocabularySet(tuple(fields.values())).save(temporary, base=None if base is None else base.hash)
        write_json(temporary / "stats.json", {field: _describe(fields[field], counts[field]) for field in fields})


def _frame(counts: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(counts)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _check_counts(users: pl.DataFrame, units: list[Unit], events: Path, *, data: DataConfig) -> None:
    """Every event has a user, so the counts must add up to the rows of the files."""
    counted, expected = (
        int(users.select(pl.sum_horizontal(pl.col("train", "eval").sum())).item()),
        sum(u.rows for u in units),
    )
    if counted != expected:
        raise DataError(f"{events}: {expected} rows in the files, {counted} were counted; nothing was published")
    if int(users["train"].sum()) == 0:
        raise DataError(
            f"{events}: no events before the evaluation window: data.eval_days = {data.eval_days} covers all days"
        )


def _side_counts(counts: pl.DataFrame, key: str, path: Path, categories: tuple[str, ...]) -> dict[str, pl.DataFrame]:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the ingest stage again") from None
    check_schema(table.schema, side_table_schema(key, categories), str(path))
    return {name: category_counts(counts, table, key, category=name) for name in categories}


def _extend(base: VocabularySet | None, field: str, counts: pl.DataFrame, min_count: int) -> Vocabulary:
    seen = counts.filter(pl.col("train") > 0).select("key", count=pl.col("train")).to_arrow()
    vocabulary = extend(None if base is None else base.field(field), field, seen, min_count=min_count)
    _LOG.info(
        "%s: %d keys, %d of them new", field, len(vocabulary.keys), len(vocabulary.keys) - _base_size(base, field)
    )
    return vocabulary


def _base_size(base: VocabularySet | None, field: str) -> int:
    return 0 if base is None else len(base.field(field).keys)


def _describe(vocabulary: Vocabulary, counts: pl.DataFrame) -> dict[str, Any]:
    """Size, and the share of events on either side of the cut whose value has no row."""
    unknown_keys = ~vocabulary.has(counts["key"].to_arrow())
    description: dict[str, Any] = {"size": vocabulary.size}
    for side in _SIDES:
        total, unknown = int(counts[side].sum()), int(counts[side].to_numpy()[unknown_keys].sum())
        description[side] = {"events": total, "unknown": unknown, "unknown_share": unknown / total if total else 0.0}
    return description


def main() -> None:
    """Command line of the stage; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.vocab", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--events", type=Path, default=Path("data/events"))
    parser.add_argument("--out", type=Path, default=Path("data/vocab"))
    args = parser.parse_args()
    run_stage(lambda: build_vocabularies(args.params, args.events, args.out))


if __name__ == "__main__":
    main()
