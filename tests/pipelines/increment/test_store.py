"""The store is a cache: damaged, tampered with or shared, it never shows in what ingest writes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import features.files
from features.errors import DataError
from pipelines import increment_logs, increment_store
from pipelines.sources.raw import RawRows
from tests.pipelines.increment.day_logs import Workspace, day_log, digests, log_path, put_day


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
