"""Increments of ingest: whatever came in which order and was kept before, the bytes are a full rebuild's."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from pipelines import ingest as stage
from pipelines.ingest import ingest
from tests.pipelines.increment.day_logs import ROWS, Workspace, log_path, put_day

CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "remove"]), st.integers(0, 4), st.integers(0, 1)),
    min_size=2,
    max_size=5,
)


@settings(max_examples=3)
@given(changes=CHANGES, until=st.integers(0, 4), days=st.integers(1, 5))
def test_any_arrivals_give_the_bytes_of_a_full_rebuild(changes: list[tuple[str, int, int]], until: int, days: int):
    """Late days, corrected days, days taken away, in any order, and at last a window."""
    with TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        put_day(workspace.raw, 2)
        workspace.run()
        for change, day, version in changes:
            if change == "put":
                put_day(workspace.raw, day, version)
            elif len(list(workspace.raw.iterdir())) > 1:
                log_path(workspace.raw, day).unlink(missing_ok=True)
            workspace.run()
        assert workspace.run() == workspace.run("full", kept=False)
        window = {"until": f"2022-04-{22 + until}", "days": days}
        assert outcome(workspace, window) == outcome(workspace, window, kept=False)


def outcome(workspace: Workspace, window: dict[str, Any], **kept: bool) -> dict[str, str] | str:
    """What a run writes, or says when the window has no row."""
    try:
        return workspace.run("windowed", window=window, **kept)
    except DataError as error:
        return str(error)


def test_a_new_day_reads_only_itself(workspace: Workspace, read_files: list[str]):
    workspace.run()
    read_files.clear()
    put_day(workspace.raw, 3)
    workspace.run()
    assert read_files == ["log_standard_03.csv"]
    read_files.clear()
    workspace.run()
    assert read_files == []


def test_a_late_and_a_corrected_day_read_only_themselves(workspace: Workspace, read_files: list[str]):
    put_day(workspace.raw, 4)
    workspace.run()
    read_files.clear()
    put_day(workspace.raw, 3)
    put_day(workspace.raw, 1, version=1)
    assert workspace.run() == workspace.run("full", kept=False)
    assert read_files[:2] == ["log_standard_01.csv", "log_standard_03.csv"]
    assert len(read_files) == 2 + 5


def test_unchanged_days_are_the_same_files(workspace: Workspace):
    workspace.run()
    before = {path: path.stat().st_ino for path in (workspace.root / "out").rglob("part-*.parquet")}
    put_day(workspace.raw, 3)
    workspace.run()
    same = {path for path, inode in before.items() if path.stat().st_ino == inode}
    assert {path.parent.name for path in same} == {"date=2022-04-22", "date=2022-04-23", "date=2022-04-24"}
    assert {path.parent.name for path in before} == {f"date=2022-04-{day}" for day in range(22, 26)}


def test_other_code_reads_everything_again(
    workspace: Workspace, read_files: list[str], monkeypatch: pytest.MonkeyPatch
):
    workspace.run()
    read_files.clear()
    monkeypatch.setattr(stage, "code_digest", lambda: "other code")
    workspace.run()
    assert len(read_files) == 3


@pytest.mark.parametrize("data", [{"timezone": "UTC"}, {"earliest": "2022-04-22"}, {"latest": "2022-04-26"}])
def test_other_settings_read_everything_again(workspace: Workspace, read_files: list[str], data: dict[str, str]):
    workspace.run()
    document = yaml.safe_load((workspace.root / "params.yaml").read_text())
    document["data"] |= data
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(document))
    read_files.clear()
    out = workspace.root / "other"
    ingest(workspace.root / "params.yaml", out / "events", out / "quarantine")
    assert len(read_files) == 3


def test_rows_outside_of_the_window_are_not_in_the_dataset(workspace: Workspace):
    workspace.run(window={"until": "2022-04-23", "days": 1})
    stats = workspace.stats()
    assert list(stats["days"]) == ["2022-04-23"]
    assert stats["window"] == ["2022-04-23", "2022-04-23"]
    assert [file["file"] for file in stats["files"]] == ["log_standard_00.csv", "log_standard_01.csv"]
    assert stats["read"] == 2 * ROWS == stats["kept"] + stats["outside"] + stats["quarantined"]
    assert stats["kept"] == stats["days"]["2022-04-23"]
    assert stats["outside"] > 0
    assert stats["quarantined"] == 4
    rows = pl.read_parquet(workspace.root / "out" / "quarantine" / "rows.parquet")
    assert set(rows["file"]) == {"log_standard_00.csv", "log_standard_01.csv"}
    assert [path.name for path in (workspace.root / "out" / "events").glob("date=*")] == ["date=2022-04-23"]


def test_a_window_that_moves_drops_old_days_and_takes_them_back(workspace: Workspace, read_files: list[str]):
    first = workspace.run(window={"until": "2022-04-23", "days": 2})
    put_day(workspace.raw, 3)
    workspace.run(window={"until": "2022-04-25", "days": 1})
    assert list(workspace.stats()["days"]) == ["2022-04-25"]
    kept = {path.parent.name for path in workspace.store.glob("logs/*/*.arrow")}
    assert len(kept) == 2  # of the four files the two with rows of the day
    read_files.clear()
    log_path(workspace.raw, 3).unlink()
    assert workspace.run(window={"until": "2022-04-23", "days": 2}) == first


def test_a_window_without_a_row_names_what_there_is(workspace: Workspace):
    with pytest.raises(
        DataError, match=r"no row in the window \(data.window\); the logs have 2022-04-22 to 2022-04-25"
    ):
        workspace.run(window={"until": "2022-05-08", "days": 3})


def test_the_ranks_of_files_do_not_depend_on_the_window(workspace: Workspace):
    whole = workspace.run()
    part = workspace.run(window={"until": "2022-04-24", "days": 1})
    name = "events/date=2022-04-24/part-000.parquet"
    assert part[name] == whole[name]
