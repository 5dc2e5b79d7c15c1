from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from features.schema import EVENTS
from pipelines.bench.logs import NUM_DAYS, LogShape, write_logs
from pipelines.bench.measure import run_measured
from pipelines.bench.polars_group import VARIANTS
from pipelines.bench.runs import Bench, figures, shuffled_copy

ROOT = Path(__file__).parents[2]


def rows_of(folder: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted(folder.glob("*.parquet")))


def test_a_log_has_its_events_its_duplicates_and_its_hot_user(tmp_path):
    plain = rows_of(write_logs(tmp_path, LogShape(30_000)))
    hot = rows_of(write_logs(tmp_path, LogShape(30_000, hot_user_events=6_000)))
    assert len(list((tmp_path / "log-30000").iterdir())) == NUM_DAYS
    for rows in (plain, hot):
        assert len(rows) == 30_000
        assert 100 <= len(rows) - len(rows.unique()) <= 150  # half a percent
    assert (plain["user_id"] == 1).sum() == 0
    assert (hot["user_id"] == 1).sum() == pytest.approx(6_000, rel=0.1)


def test_a_log_is_made_once_and_equal(tmp_path):
    first = write_logs(tmp_path / "a", LogShape(3_000))
    assert write_logs(tmp_path / "a", LogShape(3_000)) == first
    assert rows_of(write_logs(tmp_path / "b", LogShape(3_000))).equals(rows_of(first))
    assert rows_of(shuffled_copy(first, 20)).equals(rows_of(first))


def test_the_scripts_variants_keep_the_same_events(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "user_id": rng.integers(0, 5, 500),
        "item_id": rng.integers(0, 5, 500),
        "timestamp_ms": rng.integers(0, 50, 500),
        "action_mask": rng.integers(0, 2, 500),
        "watch_ms": rng.integers(0, 2, 500),
        "duration_ms": rng.integers(1, 2, 500),
        "surface": rng.integers(0, 2, 500),
    }
    frame = pl.DataFrame(columns)
    found = []
    for variant in VARIANTS.values():
        grouped = variant(frame.lazy()).collect()
        assert grouped["user_id"].is_sorted()
        times = grouped["timestamp_ms"].to_list()
        assert all(row == sorted(row, reverse=True) for row in times)
        found.append(grouped.explode(pl.exclude("user_id")).sort(pl.all()).select(frame.columns))
    assert all(rows.equals(frame.unique().sort(pl.all())) for rows in found)


def test_memory_and_time_of_a_whole_process_tree_are_seen(tmp_path):
    child = "import time; held = bytearray(200 << 20); held[::4096] = b'x' * len(held[::4096]); time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    usage = run_measured([sys.executable, "-c", parent], cwd=tmp_path)
    assert usage.peak_bytes > 200 << 20
    assert usage.seconds > 0.5
    assert usage.cpu_seconds > 0
    assert figures(usage, 1000)["events_per_second"] == round(1000 / usage.seconds)


def test_a_process_that_fails_is_told_with_what_it_printed(tmp_path):
    with pytest.raises(RuntimeError, match="exit status 3\nbroken"):
        run_measured([sys.executable, "-c", "print('broken'); raise SystemExit(3)"], cwd=tmp_path)


@pytest.mark.slow
def test_a_run_goes_through_all_stages(tmp_path):
    bench = Bench(ROOT, tmp_path)
    run = bench.run("small", bench.log(LogShape(3_000)), 3_000, num_shards=2)
    for stage in ("ingest", "vocab", "streams"):
        assert run.stage(stage).seconds > 0
    assert len(run.checksum) == 32
    first = sorted((run.folder / "events").glob("date=*/*.parquet"))[0]
    assert pq.read_schema(first).equals(EVENTS)
    best = run.best_polars()
    assert best.variant in VARIANTS
    assert best.usage.seconds > 0
