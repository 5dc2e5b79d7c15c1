"""The landing folder: which day a file belongs to, when a day has arrived, what a night freezes."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from flows.nightly.logs import (
    arrived_days,
    day_matcher,
    digest_files,
    files_of,
    freeze,
    has_settled,
    list_logs,
    wait_for_logs,
)

DAY = datetime.date(2024, 2, 29)
PATTERN = "log_%Y%m%d*.csv"


@given(st.dates(datetime.date(1000, 1, 1)))
def test_a_name_tells_its_day(day: datetime.date):
    assert day_matcher(PATTERN)(f"log_{day:%Y%m%d}_a.csv") == day
    assert day_matcher("%d.%m.%Y.gz")(f"{day:%d.%m.%Y}.gz") == day
    assert day_matcher(PATTERN)(f"users_{day:%Y%m%d}.csv") is None


def test_a_day_that_does_not_exist_is_named():
    with pytest.raises(DataError, match=r"log_20230229\.csv: there is no such day"):
        day_matcher(PATTERN)("log_20230229.csv")


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    folder = tmp_path / "landing"
    folder.mkdir()
    for name in ("log_20240228.csv", "log_20240229_a.csv", "log_20240229_b.csv", "users.csv", ".log_20240301.csv"):
        (folder / name).write_text(name)
    return folder


def test_days_and_side_tables_are_told_apart(landing: Path):
    files = list_logs(landing, PATTERN)
    assert arrived_days(files) == {DAY, DAY - datetime.timedelta(days=1)}
    assert [file.name for file in files_of(files, {DAY})] == ["log_20240229_a.csv", "log_20240229_b.csv", "users.csv"]


def test_a_day_has_arrived_when_nothing_of_it_changes_any_more(landing: Path):
    now = time.time()
    for name in ("log_20240229_a.csv", "log_20240229_b.csv"):
        os.utime(landing / name, (now - 100, now - 100))

    def settled(day: datetime.date, seconds: float) -> bool:
        return has_settled(list_logs(landing, PATTERN), day, now=now, settle_seconds=seconds)

    assert settled(DAY, 60)
    assert not settled(DAY, 200)
    assert not settled(DAY + datetime.timedelta(days=1), 0)
    os.utime(landing / "log_20240229_b.csv", (now, now))
    assert not settled(DAY, 60)


def test_an_empty_file_is_no_day(landing: Path):
    (landing / "log_20240302.csv").touch()
    assert not has_settled(
        list_logs(landing, PATTERN), datetime.date(2024, 3, 2), now=time.time() + 9, settle_seconds=0
    )


def test_waiting_looks_at_least_once_and_ends_at_the_deadline():
    looks, waits = [], []

    def look() -> bool:
        looks.append(1)
        return len(looks) == 3

    soon = time.time() + 60
    assert wait_for_logs(look, deadline=soon, poll_seconds=0.01, on_wait=waits.append)
    assert (len(looks), len(waits)) == (3, 2)
    assert not wait_for_logs(lambda: False, deadline=time.time() - 1, poll_seconds=1, on_wait=waits.append)


def test_a_frozen_copy_holds_exactly_the_files_and_never_rewrites_one_in_place(landing: Path, tmp_path: Path):
    target, state = tmp_path / "logs", tmp_path / "state"
    files = list_logs(landing, PATTERN)
    freeze(files, digest_files(files, state), target)
    assert sorted(path.name for path in target.iterdir()) == [file.name for file in files]
    # What DVC's cache may share with the copy keeps its content when the log changes.
    os.link(target / "users.csv", tmp_path / "cached")
    (landing / "users.csv").write_text("changed")
    (landing / "log_20240228.csv").unlink()
    before = (target / "log_20240229_a.csv").stat().st_mtime_ns
    files = list_logs(landing, PATTERN)
    freeze(files, digest_files(files, state), target)
    assert (target / "users.csv").read_text() == "changed"
    assert (tmp_path / "cached").read_text() == "users.csv"
    assert not (target / "log_20240228.csv").exists()
    assert (target / "log_20240229_a.csv").stat().st_mtime_ns == before


def test_a_file_that_changes_while_it_is_read_is_refused(landing: Path, tmp_path: Path):
    files = list_logs(landing, PATTERN)
    snapshot = digest_files(files, tmp_path)
    (landing / "users.csv").write_text("changed")
    with pytest.raises(DataError, match=r"users\.csv: changed while it was read"):
        freeze(files, snapshot, tmp_path / "logs")


def test_digests_follow_content_and_names(landing: Path, tmp_path: Path):
    files = list_logs(landing, PATTERN)
    first = digest_files(files, tmp_path).digest
    assert digest_files(files, tmp_path).digest == first
    (landing / "users.csv").write_text("Users.csv")
    os.utime(landing / "users.csv", (1, 1))
    assert digest_files(list_logs(landing, PATTERN), tmp_path).digest != first
