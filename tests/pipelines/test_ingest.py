"""The ingest stage as a whole: days, order, accounts, the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from features.errors import DataError
from features.files import read_json
from features.schema import EVENTS, side_table_schema
from pipelines import day_files, increment_days
from pipelines.day_files import RankedSpill
from pipelines.ingest import ingest
from pipelines.sources import lines
from pipelines.sources.raw import RANK_SHIFT

FIRST_MS = 1_650_600_000_000  # 2022-04-22 12:00 in Shanghai
DAY_MS = 86_400_000
HOUR_MS = 3_600_000


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Runs the stage into `out` and returns it, with events/ and quarantine/ in it."""

    def ingest_into(params: Path, name: str = "out") -> Path:
        out = tmp_path / name
        ingest(params, out / "events", out / "quarantine")
        return out

    return ingest_into


def read_events(out: Path) -> pl.DataFrame:
    """All rows in the order of the files, with their day."""
    files = sorted((out / "events").glob("date=*/*.parquet"))
    return pl.concat(
        pl.read_parquet(path, hive_partitioning=False).with_columns(day=pl.lit(path.parent.name)) for path in files
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def many_lines(log_line: Callable[..., str], seed: int, size: int = 300) -> list[str]:
    """Rows of some days, many with equal times, some bad."""
    rng = np.random.default_rng(seed)
    lines = [
        log_line(
            user_id=rng.integers(20),
            video_id=rng.integers(50),
            time_ms=FIRST_MS + rng.integers(3) * DAY_MS + rng.integers(20) * HOUR_MS,
            is_like=rng.integers(2),
        )
        for _ in range(size)
    ]
    lines[7] = log_line(user_id=-4)
    lines[9] = "1,2,3"
    return lines


def test_rows_are_split_by_local_day_and_ordered(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    run: Callable[..., Path],
) -> None:
    midnight = FIRST_MS + 12 * HOUR_MS
    times = [midnight, midnight - 1, FIRST_MS, midnight + 5, FIRST_MS, midnight + 2 * DAY_MS]
    out = run(write_params(write_log([log_line(time_ms=at, video_id=n) for n, at in enumerate(times)])))
    events = read_events(out)
    assert events.select("day", "item_id").rows() == [
        ("date=2022-04-22", 2),
        ("date=2022-04-22", 4),
        ("date=2022-04-22", 1),
        ("date=2022-04-23", 0),
        ("date=2022-04-23", 3),
        ("date=2022-04-25", 5),
    ]
    assert events["source_order"].to_list() == events["item_id"].to_list()
    for path in (out / "events").glob("date=*/*.parquet"):
        assert pq.read_schema(path).equals(EVENTS)
    for name, key in (("users", "user_id"), ("items", "item_id")):
        assert pq.read_table(out / "events" / f"{name}.parquet").schema.equals(side_table_schema(key, ()))


def test_the_account_adds_up(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    run: Callable[..., Path],
) -> None:
    write_log(many_lines(log_line, 1), "log_standard_4_08_to_4_21_pure.csv")
    folder = write_log([*many_lines(log_line, 2), "", "1"])
    (folder / "user_features_pure.csv").write_text("user_id,register_days\n2,y\n-3,z\n4,w\n")
    params = write_params(folder, data={"max_quarantine_ratio": 0.5}, features={"user_categories": ["register_days"]})
    out = run(params)
    stats = read_json(out / "events" / "stats.json")
    assert stats["files"] == [
        {
            "file": "log_standard_4_08_to_4_21_pure.csv",
            "read": 300,
            "kept": 298,
            "outside": 0,
            "quarantined": 2,
            "reasons": {"negative id": 1, "too few fields": 1},
        },
        {
            "file": "log_standard_4_22_to_5_08_pure.csv",
            "read": 301,
            "kept": 298,
            "outside": 0,
            "quarantined": 3,
            "reasons": {"negative id": 1, "too few fields": 2},
        },
    ]
    assert stats["side_tables"] == [
        {"file": "user_features_pure.csv", "read": 3, "kept": 2, "quarantined": 1, "reasons": {"negative id": 1}}
    ]
    assert (stats["read"], stats["kept"], stats["quarantined"]) == (601, 596, 5)
    assert stats["reasons"] == {"negative id": 2, "too few fields": 3}
    assert (stats["first_day"], stats["last_day"]) == ("2022-04-22", "2022-04-25")
    events = read_events(out)
    assert stats["days"] == {day.removeprefix("date="): rows for day, rows in events["day"].value_counts().rows()}
    assert len(events) == 596
    bad = pl.read_parquet(out / "quarantine" / "rows.parquet")
    first, second, users = (
        "log_standard_4_08_to_4_21_pure.csv",
        "log_standard_4_22_to_5_08_pure.csv",
        "user_features_pure.csv",
    )
    assert bad.select("file", "row").rows() == [
        (first, 9),
        (first, 11),
        (second, 9),
        (second, 11),
        (second, 303),
        (users, 3),
    ]


def test_the_same_bytes_whatever_the_workers_the_pieces_and_the_order_of_the_files(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"log_standard_4_22_to_5_08_27k_part{part}.csv" for part in (1, 2, 3)]
    logs = {name: many_lines(log_line, seed) for seed, name in enumerate(names)}
    for name in names:
        folder = write_log(logs[name], name)
    first = digests(run(write_params(folder, pipelines={"num_workers": 1}), "first"))
    for path in folder.iterdir():
        path.unlink()
    for name in reversed(names):
        write_log(logs[name], name)
    second = digests(run(write_params(folder, pipelines={"num_workers": 2, "rows_per_unit": 7}), "second"))
    monkeypatch.setattr(lines, "UNIT_BYTES", 1000)
    third = digests(run(write_params(folder, pipelines={"num_workers": 2}), "third"))
    assert len(first) == 4 + 4
    assert first == second
    assert first == third


@pytest.mark.parametrize(("max_sorted_rows", "sorted_whole"), [(1000, True), (30, False)])
def test_a_large_day_is_written_in_parts(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    max_sorted_rows: int,
    sorted_whole: bool,
) -> None:
    monkeypatch.setattr(lines, "UNIT_BYTES", 1000)
    monkeypatch.setattr(day_files, "ROWS_PER_FILE", 25)
    monkeypatch.setattr(day_files, "MAX_SORTED_ROWS", max_sorted_rows)
    out = run(write_params(write_log([log_line(time_ms=FIRST_MS + n * 77 % 1000) for n in range(101)])))
    sizes = [pq.read_metadata(path).num_rows for path in sorted((out / "events" / "date=2022-04-22").iterdir())]
    assert sum(sizes) == 101
    assert max(sizes) <= 25
    events = read_events(out)
    assert sorted(events["source_order"].to_list()) == list(range(101))
    assert events["timestamp_ms"].is_sorted() == sorted_whole


def test_the_real_slice(real_data: Path, write_params: Callable[..., Path], run: Callable[..., Path]) -> None:
    out = run(write_params(real_data / "kuairand_pure_slice", features={"item_categories": ["author", "tag"]}))
    stats = read_json(out / "events" / "stats.json")
    assert (stats["read"], stats["kept"], stats["quarantined"]) == (228_329, 228_329, 0)
    assert (stats["first_day"], stats["last_day"], len(stats["days"])) == ("2022-04-24", "2022-05-08", 15)
    events = read_events(out)
    assert events.equals(events.sort("day", "timestamp_ms", "source_order"))
    raw = pl.read_csv(real_data / "kuairand_pure_slice/data/log_standard_4_22_to_5_08_pure.csv")
    by_row = events.sort("source_order")
    assert by_row["source_order"].to_list() == list(range(228_329))
    for ours, theirs in (("user_id", "user_id"), ("item_id", "video_id"), ("timestamp_ms", "time_ms")):
        assert by_row[ours].to_list() == raw[theirs].to_list()
    assert by_row["watch_ms"].to_list() == raw["play_time_ms"].clip(0).to_list()
    assert by_row["duration_ms"].null_count() == (raw["duration_ms"] == 0).sum()
    assert (by_row["action_mask"] & 1).sum() == raw["is_click"].sum()
    assert (by_row["action_mask"] // 128).sum() == raw["is_profile_enter"].sum()
    assert pq.read_metadata(out / "events" / "items.parquet").num_rows == 7583


def test_lost_rows_publish_nothing(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    write_log([log_line()], "log_standard_4_08_to_4_21_pure.csv")
    params = write_params(write_log([log_line(), log_line(time_ms=FIRST_MS + DAY_MS)]))

    def write_one_row(spills: Iterable[RankedSpill], directory: Path) -> None:
        day_files.write_day(list(spills)[:1], directory)

    monkeypatch.setattr(increment_days, "write_day", write_one_row)
    with pytest.raises(DataError, match="2 good rows of 2022-04-22 were read, 1 reached its files; nothing was"):
        run(params)
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.endswith(".lock")] == []


def test_a_rerun_replaces_everything(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    run: Callable[..., Path],
) -> None:
    run(write_params(write_log([log_line(), log_line(time_ms=FIRST_MS + DAY_MS)])))
    out = run(write_params(write_log([log_line()])))
    assert [path.name for path in (out / "events").glob("date=*")] == ["date=2022-04-22"]


def test_a_killed_run_leaves_nothing_and_the_next_succeeds(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    params = write_params(write_log(many_lines(log_line, 3)))
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "pipelines.ingest", "--params", str(params)),
        *("--events", str(out / "events"), "--quarantine", str(out / "quarantine")),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".tmp-events-*/work")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "events").exists()
    assert list(out.glob(".tmp-events-*"))
    run(params)
    assert sorted(path.name for path in out.iterdir() if not path.name.endswith(".lock")) == ["events", "quarantine"]
    assert read_json(out / "events" / "stats.json")["kept"] == 298


def test_source_order_names_the_raw_row(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    run: Callable[..., Path],
) -> None:
    write_log([log_line(video_id=n) for n in range(5)], "log_random_4_22_to_5_08_pure.csv")
    folder = write_log([log_line(video_id=100 + n) for n in range(5)])
    events = read_events(run(write_params(folder)))
    rank, row = np.divmod(events["source_order"].to_numpy(), 1 << RANK_SHIFT)
    assert events["item_id"].to_list() == (rank * 100 + row).tolist()
