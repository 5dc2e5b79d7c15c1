"""Day files of Parquet that change, break or differ while ingest runs: a line that names the file, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.engine
from features.errors import DataError
from features.files import read_json
from pipelines.ingest import ingest
from pipelines.steps import Job

ROWS = 20_000
FIRST_MS = 1_650_600_000_000
DAY_MS = 86_400_000
COLUMNS = {"user_id": "user", "item_id": "item", "timestamp": "at", "timestamp_unit": "ms", "watch_ms": "watched"}
MAPPING = {"pattern": "**/*.parquet", "columns": COLUMNS, "action_columns": {"is_click": "clicked"}}
FEATURES = {"actions": ["is_click"], "streams": {"consumption": "all"}}


def day_table(day: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng([day, seed])
    return pa.table(
        {
            "user": rng.integers(0, 500, ROWS),
            "item": rng.integers(0, 900, ROWS),
            "at": FIRST_MS + day * DAY_MS + np.sort(rng.integers(0, 6 * 3_600_000, ROWS)),
            "watched": rng.integers(0, 30_000, ROWS),
            "clicked": rng.integers(0, 2, ROWS),
        }
    )


def day_path(raw: Path, day: int, part: int = 0) -> Path:
    return raw / f"date=2022-04-{22 + day}" / f"part-{part}.parquet"


def write_day(raw: Path, day: int, table: pa.Table, part: int = 0) -> None:
    path = day_path(raw, day, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5_000)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three days of logs."""
    for day in range(3):
        write_day(tmp_path / "raw", day, day_table(day))
    return tmp_path / "raw"


@pytest.fixture
def run(tmp_path: Path, write_params: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """Runs ingest over the folder `raw` in units of 5,000 rows and returns its account."""

    def run(name: str = "events") -> dict[str, Any]:
        params = write_params(
            tmp_path / "raw",
            data={"source": "parquet", "tabular": MAPPING},
            features=FEATURES,
            pipelines={"rows_per_unit": 5_000, "store": None},
        )
        ingest(params, tmp_path / name, tmp_path / f"{name}-quarantine")
        return read_json(tmp_path / name / "stats.json")

    return run


def before_the_first_pipeline(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Lets something happen after the files were planned and before they are read."""
    run, done = pipelines.engine.run_in_threads, []

    def act_and_run(job: Job, num_workers: int) -> None:
        if not done:
            done.append(True)
            act()
        run(job, num_workers)

    monkeypatch.setattr(pipelines.engine, "run_in_threads", act_and_run)


def published(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".lock", ".yaml") and "raw" not in path.parts
    }


@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_replaced_by_one_of_as_many_rows_is_named(
    raw: Path, tmp_path: Path, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    run()
    before = published(tmp_path)
    other = day_table(1, seed=1)

    def replace() -> None:
        if not in_place:
            day_path(raw, 1).unlink()
        write_day(raw, 1, other)

    before_the_first_pipeline(monkeypatch, replace)
    with pytest.raises(DataError, match=r"date=2022-04-23/part-0\.parquet: .*chang"):
        run()
    assert published(tmp_path) == before


def test_a_half_written_day_is_named(raw: Path, tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    path = day_path(raw, 2)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"date=2022-04-24/part-0\.parquet: unreadable Parquet, is it half-written\?"):
        run()
    assert published(tmp_path) == {}


def test_a_column_that_is_added_midway_is_left_alone(raw: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_day(raw, 2, day_table(2).append_column("dwell", pa.array(np.zeros(ROWS))))
    assert run()["kept"] == 3 * ROWS


def test_a_mapped_column_that_is_added_midway_is_missing_before(raw: Path, run: Callable[..., dict[str, Any]]) -> None:
    write_day(raw, 0, day_table(0).drop_columns(["watched"]))
    with pytest.raises(DataError, match=r"^date=2022-04-22/part-0\.parquet: column 'watched' is missing"):
        run()


def test_a_column_that_is_retyped_midway_is_named(raw: Path, run: Callable[..., dict[str, Any]]) -> None:
    table = day_table(1)
    write_day(raw, 1, table.set_column(0, "user", table.column("user").cast(pa.string())))
    with pytest.raises(
        DataError, match=r"^date=2022-04-23/part-0\.parquet: column 'user' has type string, expected an"
    ):
        run()


def test_a_partition_in_two_schemas_is_one_when_they_mean_the_same(
    raw: Path, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    """Other widths, another order of the columns and a column more."""
    table = day_table(1)
    first, second = table.slice(0, ROWS // 2), table.slice(ROWS // 2)
    run("whole")
    write_day(raw, 1, first)
    narrow = second.set_column(0, "user", second.column("user").cast(pa.int32()))
    narrow = narrow.set_column(4, "clicked", narrow.column("clicked").cast(pa.bool_()))
    write_day(raw, 1, narrow.select(["clicked", "at", "watched", "item", "user"]), part=1)
    run("halves")
    columns = ["user_id", "item_id", "timestamp_ms", "action_mask", "watch_ms"]
    whole, halves = (
        pq.read_table(sorted((tmp_path / name / "date=2022-04-23").glob("*.parquet")), columns=columns)
        for name in ("whole", "halves")
    )
    assert whole.equals(halves)
