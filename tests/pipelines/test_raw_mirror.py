"""Raw logs at a URL: only what changed is copied, and the folder changes as a whole."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import fsspec
import pytest

import pipelines.raw_mirror
from features.errors import DataError
from features.storage import Remote
from pipelines.raw_mirror import index_path, mirror_folder, mirrored_url, refresh_mirror


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/logs"


@pytest.fixture
def folder(url: str, tmp_path: Path) -> Path:
    return mirror_folder(url, tmp_path / "raw")


def put(url: str, name: str, text: str) -> None:
    with fsspec.open(f"{url}/{name}", "wb") as sink:
        sink.write(text.encode())


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_refresh_copies_what_is_new_or_changed_and_drops_what_is_gone(url: str, folder: Path) -> None:
    for name in ("day=1/a.csv", "day=2/a.csv", "users.csv", "day=1/.crc"):
        put(url, name, f"first {name}")
    assert refresh_mirror(url, folder) == 3
    assert refresh_mirror(url, folder) == 0
    kept = (folder / "day=1/a.csv").stat().st_ino
    put(url, "day=3/a.csv", "new")
    put(url, "users.csv", "corrected")
    Remote(url).remove("day=2/a.csv")
    assert refresh_mirror(url, folder) == 2
    assert texts(folder) == {"day=1/a.csv": "first day=1/a.csv", "day=3/a.csv": "new", "users.csv": "corrected"}
    assert (folder / "day=1/a.csv").stat().st_ino == kept
    assert mirrored_url(folder) == url
    Remote(url).remove("day=3/a.csv")
    assert refresh_mirror(url, folder) == 0
    assert "day=3/a.csv" not in texts(folder)
    assert {path.name for path in folder.parent.iterdir()} == {
        folder.name,
        index_path(folder).name,
        f".{folder.name}.lock",
    }


def test_a_file_that_was_lost_here_is_copied_again(url: str, folder: Path) -> None:
    put(url, "a.csv", "abc")
    refresh_mirror(url, folder)
    (folder / "a.csv").write_text("ab")
    assert refresh_mirror(url, folder) == 1
    assert texts(folder) == {"a.csv": "abc"}


@pytest.mark.parametrize("text", ["xyz", "longer"])
def test_a_file_replaced_while_it_is_copied_is_named_and_the_folder_stays(
    url: str, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(url, "a.csv", "old")
    refresh_mirror(url, folder)
    put(url, "a.csv", "abc")
    download = Remote.download

    def replace_meanwhile(self: Remote, name: str, target: Path) -> None:
        put(url, name, text)
        download(self, name, target)

    monkeypatch.setattr(Remote, "download", replace_meanwhile)
    with pytest.raises(DataError, match=rf"{url}/a\.csv: was replaced while it was copied; run this again"):
        refresh_mirror(url, folder)
    assert texts(folder) == {"a.csv": "old"}
    monkeypatch.undo()
    assert refresh_mirror(url, folder) == 1
    assert texts(folder) == {"a.csv": text}


def test_a_refresh_that_was_cut_off_goes_on_where_it_was(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(url, "a.csv", "a")
    put(url, "b.csv", "b")
    copied = []
    download = Remote.download

    def break_off(self: Remote, name: str, target: Path) -> None:
        copied.append(name)
        if copied == ["a.csv", "b.csv"]:
            raise DataError("no network")
        download(self, name, target)

    monkeypatch.setattr(Remote, "download", break_off)
    with pytest.raises(DataError, match="no network"):
        refresh_mirror(url, folder)
    assert not folder.exists()
    assert refresh_mirror(url, folder) == 2
    assert copied == ["a.csv", "b.csv", "b.csv"]
    assert texts(folder) == {"a.csv": "a", "b.csv": "b"}


def test_a_refresh_killed_before_its_index_is_written_is_repeated(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(url, "a.csv", "a")

    def die(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipelines.raw_mirror, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        refresh_mirror(url, folder)
    monkeypatch.undo()
    assert mirrored_url(folder) is None
    assert refresh_mirror(url, folder) == 1
    assert texts(folder) == {"a.csv": "a"}


def test_nothing_at_the_url_is_said(url: str, folder: Path) -> None:
    with pytest.raises(DataError, match=f"{url}: no file is there"):
        refresh_mirror(url, folder)
    assert not folder.exists()


def test_urls_have_folders_of_their_own() -> None:
    first, second = mirror_folder("s3://a/raw logs/"), mirror_folder("s3://b/raw logs")
    assert first.name.startswith("raw-logs-")
    assert first != second
    assert mirror_folder("s3://a/raw logs") == first
    assert os.fspath(first.parent) == "data/raw"
