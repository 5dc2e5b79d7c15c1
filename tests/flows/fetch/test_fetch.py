"""Downloads from a local server that breaks off, lies and changes its mind."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from features.errors import DataError
from features.files import read_json
from flows.fetch import download
from flows.fetch.archive import unpack
from flows.fetch.catalog import PUBLISHED, Published, RemoteFile
from flows.fetch.dataset import fetch_dataset
from flows.fetch.download import fetch_file

ROOT = Path(__file__).parents[3]
BODY = bytes(range(256)) * 40_000


@dataclass
class Site:
    """What the server does, and what it was asked.

    Attributes:
        files: content by path.
        break_after: bytes after which each of the next answers breaks off.
        has_ranges: whether it can go on in the middle.
        etag: version of all files.
        headers: sent with each file.
        asked: path and Range header of each request.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    break_after: list[int] = field(default_factory=list)
    has_ranges: bool = True
    etag: str = '"one"'
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def file(self, name: str, **settings: str | None) -> RemoteFile:
        return RemoteFile(f"{self.url}/{name}", name, **settings)


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append((self.path, wanted))
            body = site.files.get(self.path.lstrip("/"))
            if body is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if not site.has_ranges or (wanted and self.headers.get("If-Range") != site.etag):
                start = 0
            if start >= len(body) > 0:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", site.etag)
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.end_headers()
            stop = site.break_after.pop(0) if site.break_after else len(body)
            self.wfile.write(body[start : max(start, stop)])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "_SECONDS_BEFORE_RETRY", 0.0)
    found = Site("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(follow_redirects=True, trust_env=False) as found:
        yield found


def md5(body: bytes) -> str:
    return f"md5:{hashlib.md5(body).hexdigest()}"


def archive_of(files: dict[str, bytes], kind: str = "zip") -> bytes:
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as archive:
            for name, body in files.items():
                archive.writestr(name, body)
    else:
        with tarfile.open(fileobj=sink, mode="w:gz") as archive:
            for name, body in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
    return sink.getvalue()


def test_an_interrupted_download_goes_on_where_it_was_cut_off(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    site.files["log.csv"], site.break_after = BODY, [3_000_000, 7_000_000]
    found = fetch_file(site.file("log.csv", checksum=md5(BODY)), tmp_path, client)
    assert (tmp_path / "log.csv").read_bytes() == BODY
    assert found.sha256 == hashlib.sha256(BODY).hexdigest()
    starts = [0 if wanted is None else int(wanted[6:-1]) for _, wanted in site.asked]
    assert starts[0] == 0 < starts[1] <= 3_000_000 < starts[2] <= 7_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_later_call_goes_on_too(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    site.files["log.csv"], site.break_after = BODY, [1_000_000] * download._MAX_ATTEMPTS
    with pytest.raises(DataError, match=r"log\.csv: not reached, is this machine offline\? \(.*\); try again, or"):
        fetch_file(site.file("log.csv"), tmp_path, client)
    assert not (tmp_path / "log.csv").exists()
    part = (tmp_path / "log.csv.part").stat().st_size
    assert 0 < part <= 1_000_000
    site.asked.clear()
    fetch_file(site.file("log.csv"), tmp_path, client)
    assert site.asked == [("/log.csv", f"bytes={part}-")]
    assert (tmp_path / "log.csv").read_bytes() == BODY


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_changed_file_or_a_server_without_ranges_begins_anew(
    site: Site, client: httpx.Client, tmp_path: Path, is_changed: bool
) -> None:
    (tmp_path / "log.csv.part").write_bytes(b"x" * 1000)
    (tmp_path / "log.csv.part-version").write_text('"zero"' if is_changed else '"one"')
    site.files["log.csv"], site.has_ranges = BODY, is_changed
    fetch_file(site.file("log.csv", checksum=md5(BODY)), tmp_path, client)
    assert (tmp_path / "log.csv").read_bytes() == BODY


def test_a_part_that_is_longer_than_the_file_is_thrown_away(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "log.csv.part").write_bytes(b"x" * 100)
    (tmp_path / "log.csv.part-version").write_text(site.etag)
    site.files["log.csv"] = b"short"
    fetch_file(site.file("log.csv"), tmp_path, client)
    assert (tmp_path / "log.csv").read_bytes() == b"short"


def test_a_corrupted_file_is_refused_and_removed(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    site.files["log.csv"] = BODY[:-1] + b"?"
    with pytest.raises(DataError, match=rf"should have {md5(BODY)}, what came has md5:.*; it was removed, run the"):
        fetch_file(site.file("log.csv", checksum=md5(BODY)), tmp_path, client)
    assert list(tmp_path.iterdir()) == []


def test_a_corrupted_part_is_found_in_the_end(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "log.csv.part").write_bytes(b"x" * 1000)
    (tmp_path / "log.csv.part-version").write_text(site.etag)
    site.files["log.csv"] = BODY
    with pytest.raises(DataError, match="it was removed"):
        fetch_file(site.file("log.csv", checksum=md5(BODY)), tmp_path, client)
    fetch_file(site.file("log.csv", checksum=md5(BODY)), tmp_path, client)
    assert (tmp_path / "log.csv").read_bytes() == BODY


def test_the_checksum_that_a_server_announces_is_checked(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    site.files["log.parquet"] = BODY
    site.headers["X-Linked-ETag"] = f'"{hashlib.sha256(b"another").hexdigest()}"'
    with pytest.raises(DataError, match=r"should have sha256:"):
        fetch_file(site.file("log.parquet"), tmp_path, client)
    digest = hashlib.sha256(BODY).hexdigest()
    site.headers["X-Linked-ETag"] = f'"{digest}"'
    assert fetch_file(site.file("log.parquet"), tmp_path, client).checksum == f"sha256:{digest}"


def test_the_checksum_of_a_zenodo_record_is_checked(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    record = {"files": [{"key": "other.zip", "checksum": "md5:0"}, {"key": "log.csv", "checksum": md5(BODY)}]}
    site.files |= {"log.csv": BODY, "record": json.dumps(record).encode()}
    file = site.file("log.csv", record_url=f"{site.url}/record")
    assert fetch_file(file, tmp_path, client).checksum == md5(BODY)
    site.files["record"] = b"{}"
    with pytest.raises(DataError, match=r"/record: tells no checksum of log\.csv"):
        fetch_file(file, tmp_path, client)


def test_offline_says_what_to_do_by_hand(tmp_path: Path, client: httpx.Client) -> None:
    file = RemoteFile("http://127.0.0.1:9/log.csv", "log.csv")
    with pytest.raises(DataError) as error:
        fetch_file(file, tmp_path / "raw", client)
    assert str(error.value).startswith("http://127.0.0.1:9/log.csv: not reached, is this machine offline? (")
    assert f"download it by hand to {tmp_path}/raw/log.csv and run the command again" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_was_put_there_by_hand_is_taken_and_checked(
    site: Site, client: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_bytes(BODY)
    assert fetch_file(site.file("log.csv", checksum=md5(BODY)), tmp_path, client).checksum == md5(BODY)
    assert site.asked == []


def test_what_the_server_has_not(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/log\.csv: 127\.0\.0\.1 answers 404; download it by hand to "):
        fetch_file(site.file("log.csv"), tmp_path, client)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_dataset_is_unpacked_and_recorded(site: Site, tmp_path: Path, kind: str) -> None:
    files = {"top/ratings.csv": b"userId\n", "top/data/log.csv": b"x" * 5000, "top/empty": b""}
    site.files[f"ml.{kind}"] = archive_of(files, kind)
    published = Published("movielens", (site.file(f"ml.{kind}"),))
    folder = tmp_path / "raw"
    record = fetch_dataset("ml", published, folder)
    assert record.files == {"ratings.csv": 7, "data/log.csv": 5000, "empty": 0}
    assert (folder / "data" / "log.csv").read_bytes() == b"x" * 5000
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "data",
        "empty",
        "fetched.json",
        "ratings.csv",
    ]
    assert read_json(folder / "fetched.json") == record.model_dump(mode="json")
    assert record.downloads[0].checksum is None
    asked = len(site.asked)
    assert fetch_dataset("ml", published, folder) == record
    assert len(site.asked) == asked
    (folder / "ratings.csv").unlink()
    assert fetch_dataset("ml", published, folder) == record
    assert (folder / "ratings.csv").exists()
    with pytest.raises(DataError, match="raw: holds ml already; fetch other into a folder of its own"):
        fetch_dataset("other", published, folder)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "top/../../evil", "C:/evil", "..\\evil"])
def test_nothing_lands_outside_of_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    archive = tmp_path / f"bad.{kind}"
    archive.write_bytes(archive_of({"top/good": b"1", name: b"2"}, kind))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match=r"would land outside of the folder; the archive is refused"):
        unpack(archive, folder)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("top/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    member = tarfile.TarInfo("top/link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as archive:
        archive.addfile(member)
    for name in ("bad.zip", "bad.tar.gz"):
        with pytest.raises(DataError, match=rf"{name}: member 'top/link' is a link"):
            unpack(tmp_path / name, tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"bad.{kind}"
    archive.write_bytes(archive_of({"top/log": bytes(range(256)) * 4000}, kind)[:-3000])
    with pytest.raises(DataError, match=r"cannot be unpacked \(.*\); remove it and run the command again"):
        unpack(archive, tmp_path)


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from flows.cli import main; main()", "data", "fetch", *arguments]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    shown = run("taobao", "--to", "raw")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == (
        "hstu2: taobao: its publisher wants a login; download UserBehavior.csv from https://tianchi.aliyun.com/dataset/649"
        " into raw\n"
    )
    shown = run("movielens", "--to", "raw")
    assert shown.returncode == 2
    assert all(name in shown.stderr for name in PUBLISHED)


def test_every_dataset_has_a_source_and_addresses_of_its_own() -> None:
    from pipelines.sources.catalog import DATASETS

    assert {published.source for published in PUBLISHED.values()} == set(DATASETS)
    addresses = [file.url for published in PUBLISHED.values() for file in published.files]
    assert len(set(addresses)) == len(addresses)
    assert all(published.files or published.login_url for published in PUBLISHED.values())
