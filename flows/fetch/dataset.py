"""A published dataset into a folder, ready for data.path, with a record of what came."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx

from features.config import Closed
from features.errors import DataError
from features.files import exclusive_lock, read_json, write_json
from flows.fetch.archive import is_archive, unpack
from flows.fetch.catalog import Published
from flows.fetch.download import Fetched, fetch_file

_LOG = logging.getLogger(__name__)
RECORD = "fetched.json"
_TIMEOUT = httpx.Timeout(30.0, read=60.0)


class FileRecord(Closed):
    """A downloaded file; `checksum` is its publisher's, null when there is none."""

    url: str
    name: str
    num_bytes: int
    sha256: str
    checksum: str | None


class Record(Closed):
    """What is in the folder: the files that came, and bytes of each file that is there now by its path."""

    dataset: str
    downloads: tuple[FileRecord, ...]
    files: dict[str, int]


def fetch_dataset(name: str, published: Published, folder: Path, *, keep_archives: bool = False) -> Record:
    """Downloads, checks and unpacks what is missing, and writes the record last.

    Raises:
        DataError: the dataset wants a login, the folder has another one, or a file cannot be had as it should be.
    """
    if published.login_url is not None:
        raise DataError(
            f"{name}: its publisher wants a login; download {published.by_hand} from {published.login_url}"
            f" into {folder}"
        )
    before = _read_record(folder, name)
    if before is not None and _is_whole(before, folder):
        _LOG.info("%s: all of %s is there already", folder, name)
        return before
    folder.mkdir(parents=True, exist_ok=True)
    downloads: list[FileRecord] = []
    files: dict[str, int] = {}
    lock = exclusive_lock(folder / f".{RECORD}.lock", f"{folder}: process {{holder}} is fetching into it")
    with lock, httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
        for file in published.files:
            fetched = fetch_file(file, folder, client)
            _tell(fetched, before)
            downloads.append(
                FileRecord(
                    url=file.url,
                    name=file.name,
                    num_bytes=fetched.num_bytes,
                    sha256=fetched.sha256,
                    checksum=fetched.checksum,
                )
            )
            files |= _unpacked(fetched, folder, keep_archives)
        record = Record(dataset=name, downloads=tuple(downloads), files=files)
        write_json(folder / RECORD, record.model_dump(mode="json"))
    return record


def _read_record(folder: Path, name: str) -> Record | None:
    if not (folder / RECORD).exists():
        return None
    record = Record.model_validate(read_json(folder / RECORD))
    if record.dataset != name:
        raise DataError(f"{folder}: holds {record.dataset} already; fetch {name} into a folder of its own")
    return record


def _is_whole(record: Record, folder: Path) -> bool:
    paths = {folder / name: size for name, size in record.files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _tell(fetched: Fetched, before: Record | None) -> None:
    if fetched.checksum is not None:
        _LOG.info("%s: has the checksum that its publisher gives, %s", fetched.path.name, fetched.checksum)
        return
    _LOG.warning("%s: no checksum is published; what came has sha256:%s", fetched.path.name, fetched.sha256)
    known = [] if before is None else [file.sha256 for file in before.downloads if file.name == fetched.path.name]
    if known and known != [fetched.sha256]:
        _LOG.warning("%s: that is another file than last time (sha256:%s)", fetched.path.name, known[0])


def _unpacked(fetched: Fetched, folder: Path, keep_archives: bool) -> dict[str, int]:
    if not is_archive(fetched.path):
        return {fetched.path.name: fetched.num_bytes}
    _LOG.info("unpacking %s", fetched.path.name)
    files = unpack(fetched.path, folder)
    if not keep_archives:
        fetched.path.unlink()
    return files
