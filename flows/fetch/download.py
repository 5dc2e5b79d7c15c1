"""One file by HTTP: taken up again where it was cut off, whole and checked before it has its name."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from features.errors import DataError
from flows.fetch.catalog import RemoteFile
from pipelines.progress import Phase, log_progress

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_MAX_ATTEMPTS = 5
_SECONDS_BEFORE_RETRY = 1.0
_SHA256_CHARS = 64


@dataclass(frozen=True)
class Fetched:
    """A file that is there whole: its size and digest, and the publisher's checksum if there is one."""

    path: Path
    num_bytes: int
    sha256: str
    checksum: str | None


@dataclass(frozen=True)
class _Answer:
    """What a server says before it sends: the whole file's size, what names this version of it, and its checksum."""

    total: int | None
    version: str | None
    checksum: str | None


def fetch_file(file: RemoteFile, folder: Path, client: httpx.Client) -> Fetched:
    """Downloads a file into a folder, or takes the one that a person put there, and checks it.

    Raises:
        DataError: it cannot be reached, breaks off again and again, or is not what its publisher says. The part of a
            download that was cut off stays for the next time; one that is not what it should be is removed.
    """
    target = folder / file.name
    folder.mkdir(parents=True, exist_ok=True)
    with _one_line_errors(file, folder):
        checksum = file.checksum if file.record_url is None else _zenodo_checksum(file, client)
        announced = None if target.exists() else _download(file, target, client)
    found = _digest(target)
    checksum = checksum or announced
    if checksum is not None and checksum not in (f"md5:{found.md5}", f"sha256:{found.sha256}"):
        target.unlink()
        raise DataError(
            f"{target}: {file.url} should have {checksum}, what came has {found.of(checksum)};"
            " it was removed, run the command again"
        )
    return Fetched(target, target.stat().st_size, found.sha256, checksum)


def _download(file: RemoteFile, target: Path, client: httpx.Client) -> str | None:
    """Leaves the whole file at `target`, and returns the checksum that the server announced, if it did."""
    part, version = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part-version")
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            answer = _receive(file, part, version, client)
            break
        except httpx.TransportError as error:
            done = part.stat().st_size if part.exists() else 0
            if attempt == _MAX_ATTEMPTS or (attempt == 1 and isinstance(error, httpx.ConnectError)):
                raise
            _LOG.info("%s: broke off at byte %s (%s), trying again", file.name, f"{done:,}", error)
            time.sleep(_SECONDS_BEFORE_RETRY * attempt)
    found = part.stat().st_size
    if answer.total is not None and found != answer.total:
        part.unlink()
        raise DataError(f"{part}: {found:,} bytes came, the server announced {answer.total:,}; run the command again")
    os.replace(part, target)
    version.unlink(missing_ok=True)
    return answer.checksum


def _receive(file: RemoteFile, part: Path, version: Path, client: httpx.Client) -> _Answer:
    """Appends what is missing to `part`; begins anew where the server has another version or cannot go on."""
    start = part.stat().st_size if part.exists() and version.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version.read_text()}
    with client.stream("GET", file.url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            version.unlink()
            raise httpx.ReadError("the server has another file now")
        response.raise_for_status()
        start = start if response.status_code == httpx.codes.PARTIAL_CONTENT else 0
        answer = _answer(response, start)
        _check_disk(file, part, None if answer.total is None else answer.total - start)
        version.unlink(missing_ok=True)
        if answer.version is not None:
            version.write_text(answer.version)
        total = answer.total or 0
        with part.open("ab" if start else "wb") as sink, log_progress(Phase("bytes", total, lambda: _size(part))):
            # As they come, not gathered: what was received before a break is kept.
            for chunk in response.iter_raw():
                sink.write(chunk)
    if answer.total is not None and _size(part) < answer.total:
        raise httpx.ReadError("the connection ended early")
    return answer


def _answer(response: httpx.Response, start: int) -> _Answer:
    length = response.headers.get("Content-Length")
    etag = response.headers.get("ETag", "")
    strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    # Hugging Face tells the SHA-256 before it redirects to where the bytes are.
    links = [hop.headers.get("X-Linked-ETag", "").strip('"') for hop in (*response.history, response)]
    digests = [link for link in links if len(link) == _SHA256_CHARS]
    return _Answer(
        total=None if length is None else int(length) + start,
        version=strong,
        checksum=f"sha256:{digests[0]}" if digests else None,
    )


def _size(path: Path) -> int:
    return path.stat().st_size


def _check_disk(file: RemoteFile, part: Path, missing: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing is not None and missing > free:
        raise DataError(f"{part.parent}: {file.name} needs {missing:,} bytes more, the disk has {free:,} left")


def _zenodo_checksum(file: RemoteFile, client: httpx.Client) -> str:
    assert file.record_url is not None
    response = client.get(file.record_url)
    response.raise_for_status()
    try:
        return next(str(entry["checksum"]) for entry in response.json()["files"] if entry["key"] == file.name)
    except (ValueError, KeyError, TypeError, StopIteration):
        raise DataError(f"{file.record_url}: tells no checksum of {file.name}") from None


@dataclass(frozen=True)
class _Digests:
    md5: str
    sha256: str

    def of(self, checksum: str) -> str:
        return f"md5:{self.md5}" if checksum.startswith("md5:") else f"sha256:{self.sha256}"


def _digest(path: Path) -> _Digests:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    for chunk in _chunks(path):
        md5.update(chunk)
        sha256.update(chunk)
    return _Digests(md5.hexdigest(), sha256.hexdigest())


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


@contextmanager
def _one_line_errors(file: RemoteFile, folder: Path) -> Iterator[None]:
    by_hand = f"download it by hand to {folder / file.name} and run the command again"
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise DataError(
            f"{file.url}: {error.request.url.host} answers {error.response.status_code}; {by_hand}"
        ) from None
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{file.url}: not reached, is this machine offline? ({reason}); try again, or {by_hand}"
        ) from None
