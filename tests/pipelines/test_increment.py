"""Increments of ingest: whatever came in which order and was kept before, the bytes are a full rebuild's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import features.files
from features.errors import DataError
from features.files import read_json
from pipelines import increment_logs, increment_store
from pipelines import ingest as stage
from pipelines.ingest import ingest
from pipelines.sources.raw import RawRows

ROOT = Path(__file__).parents[2]
FIRST_MS = 1_650_556_800_000  # 2022-04-22 00:00 in Shanghai
DAY_MS = 86_400_000
ROWS = 40
HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def day_log(day: int, version: int = 0, rows: int = ROWS) -> str:
    """A day's rows, two of them bad, a fifth of them after midnight, so that a day has rows of two files."""
    rng = np.random.default_rng([day, version])
    times = FIRST_MS + day * DAY_MS + rng.integers(0, DAY_MS // 4, rows) * 5
    lines = [
        f"{user},{item},0,0,{at},{click},0,0,0,0,0,0,5000,9000,0,0,0,0,1"
        for user, item, at, click in zip(
            rng.integers(0, 5, rows), rng.integers(0, 9, rows), times, rng.integers(0, 2, rows), strict=True
        )
    ]
    lines[3] = "1,2,3"
    lines[7] = lines[7].replace(",", ",-", 1)
    return "\n".join([HEADER, *lines]) + "\n"


def log_path(raw: Path, day: int) -> Path:
    return raw / f"log_standard_{day:02d}.csv"


def put_day(raw: Path, day: int, version: int = 0) -> Path:
    raw.mkdir(exist_ok=True)
    log_path(raw, day).write_text(day_log(day, version))
    return log_path(raw, day)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


class Workspace:
    """A folder with raw logs, a store and outputs."""

    def __init__(self, root: Path) -> None:
        self.root, self.raw, self.store = root, root / "raw", root / "store"

    def run(self, name: str = "out", *, kept: bool = True, window: dict[str, Any] | None = None) -> dict[str, str]:
        """Runs ingest, with the store or without one, and digests what it wrote."""
        document = yaml.safe_load((ROOT / "params.yaml").read_text())
        document["data"] |= {"path": str(self.raw), "max_quarantine_ratio": 0.5, "window": window}
        document["features"] |= {"item_categories": [], "user_categories": []}
        document["pipelines"] |= {"store": str(self.store) if kept else None, "num_workers": 1}
        params = self.root / "params.yaml"
        params.write_text(yaml.safe_dump(document))
        out = self.root / name
        ingest(params, out / "events", out / "quarantine")
        return digests(out)

    def stats(self, name: str = "out") -> dict[str, Any]:
        return read_json(self.root / name / "events" / "stats.json")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three days of logs, none read yet."""
    for day in range(3):
        put_day(tmp_path / "raw", day)
    return Workspace(tmp_path)


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were parsed since."""
    names: list[str] = []
    original = increment_logs.read_unit

    def read(*args: Any) -> RawRows:
        names.append(args[0].file.name)
        return original(*args)

    monkeypatch.setattr(increment_logs, "read_unit", read)
    return names


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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.unlink()
    path.write_bytes(content)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("logs/*/entry.json", flip),
        ("logs/*/entry.json", truncate),
        ("logs/*/*.arrow", flip),
        ("logs/*/*.arrow", Path.unlink),
        ("logs/*/quarantine-*", flip),
        ("days/*/part-*", flip),
        ("days/*/part-*", truncate),
        ("days/index/*", truncate),
        ("sides/*/*", flip),
        ("stamps.json", truncate),
    ],
)
def test_a_damaged_store_is_noticed_and_made_again(workspace: Workspace, pattern: str, harm: Callable[[Path], None]):
    expected = workspace.run()
    found = list(workspace.store.glob(pattern))
    assert found
    for path in found:
        harm(path)
    put_day(workspace.raw, 1, version=1)
    put_day(workspace.raw, 1)
    if pattern.startswith("logs/*/*.arrow"):
        for path in workspace.store.glob("days/*/part-*"):  # else nobody needs the rows
            path.unlink()
    assert workspace.run() == expected


def test_a_record_that_was_tampered_with_is_not_believed(workspace: Workspace):
    expected = workspace.run()
    for path in workspace.store.glob("logs/*/entry.json"):
        path.write_text(path.read_text().replace('"rows": ', '"rows": 1'))
    assert workspace.run() == expected


def test_a_file_that_keeps_its_size_and_time_is_still_noticed(workspace: Workspace):
    workspace.run()
    path = log_path(workspace.raw, 1)
    status = path.stat()
    path.write_text(day_log(1).replace(",1,0,0,0,0,0,0,5000,", ",0,0,0,0,0,0,0,5000,"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert workspace.run() == workspace.run("full", kept=False)


def test_the_digest_of_a_settled_file_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "log.csv"
    path.write_text("a\n")
    store = increment_store.Store(tmp_path / "store")
    monkeypatch.setattr(increment_store, "_SETTLED_NS", 0)
    with store.opened():
        first = store.content_digest(str(path))
    again = increment_store.Store(tmp_path / "store")
    with again.opened():
        monkeypatch.setattr(hashlib, "file_digest", None)  # reading it would fail
        assert again.content_digest(str(path)) == first


def test_a_file_that_changes_while_it_is_read_stops_the_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    original = increment_logs.read_unit

    def read(*args: Any) -> RawRows:
        rows = original(*args)
        path = Path(args[0].file.path)
        path.write_text(path.read_text())
        return rows

    monkeypatch.setattr(increment_logs, "read_unit", read)
    with pytest.raises(
        DataError, match=r"log_standard_0\d\.csv: changed while it was read; run the ingest stage again"
    ):
        workspace.run()
    monkeypatch.undo()
    assert workspace.run() == workspace.run("full", kept=False)


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


def test_new_events_never_stand_beside_an_old_quarantine(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Whichever of the two renames the run does not live to see."""
    old = workspace.run()
    replace = features.files._replace_directory
    for name in ("quarantine", "events"):
        put_day(workspace.raw, 1, version=1 if name == "events" else 2)

        def die(temporary: Path, target: Path, name: str = name) -> None:
            if target.name == name:
                raise KeyboardInterrupt
            replace(temporary, target)

        monkeypatch.setattr(features.files, "_replace_directory", die)
        with pytest.raises(KeyboardInterrupt):
            workspace.run()
        found = digests(workspace.root / "out")
        assert "events/stats.json" not in found
        assert all(found[path] == content for path, content in old.items() if "/date=" in path)
        monkeypatch.undo()
        old = workspace.run()
        assert old == workspace.run("full", kept=False)


def test_two_runs_do_not_share_a_store_at_once(workspace: Workspace):
    with increment_store.Store(workspace.store).opened(), pytest.raises(DataError, match="is using it; wait for it"):
        workspace.run()


def test_the_store_forgets_raw_files_that_are_gone(workspace: Workspace):
    workspace.run()
    log_path(workspace.raw, 0).unlink()
    workspace.run()
    assert len(list(workspace.store.glob("logs/*"))) == 2
    assert len(list(workspace.store.glob("days/*/part-*"))) == 3
