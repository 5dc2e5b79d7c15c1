"""Raw logs at a URL, kept as a folder on the disk that a refresh brings up to date file by file.

Each byte is transferred once: what was there before is linked, what is new or changed is copied, what is gone at the
URL goes here too. The folder changes as a whole or not at all; DVC and ingest see an ordinary folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from features.config import Closed
from features.errors import DataError
from features.files import atomic_directory, read_json, write_json
from features.storage import Remote, RemoteFile
from pipelines.progress import progress_line

_LOG = logging.getLogger(__name__)


class MirroredFile(Closed):
    """A file as it was listed: its path below the URL, its bytes, and its version at the store."""

    name: str
    size: int
    version: str


class MirrorIndex(Closed):
    """What a mirror holds, beside the folder so that its own bytes do not show in it."""

    url: str
    files: tuple[MirroredFile, ...]


def mirror_folder(url: str, parent: Path = Path("data/raw")) -> Path:
    """Where the logs of a URL are kept: the last word of the URL, for people, and a digest of all of it."""
    url = url.rstrip("/")
    word = "".join(char if char.isalnum() or char in "-_." else "-" for char in url.rpartition("/")[2])
    return parent / f"{word}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def index_path(folder: Path) -> Path:
    """Where a mirror's index is."""
    return folder.with_name(f"{folder.name}.mirror.json")


def mirrored_url(folder: Path) -> str | None:
    """The URL of a folder that is a mirror, else None."""
    path = index_path(folder)
    return MirrorIndex.model_validate(read_json(path)).url if path.is_file() else None


def refresh_mirror(url: str, folder: Path, *, tell: Callable[[str], None] = _LOG.info) -> int:
    """Makes `folder` hold exactly the files at `url`; `tell` gets a line of progress after each file.

    Returns:
        The number of files that were copied.

    Raises:
        DataError: nothing is at the URL, or a file was replaced while it was copied.
    """
    remote = Remote(url)
    listed = _list(remote)
    known = _known(folder)
    stale = [file for file in listed if known.get(file.name) != file]
    if not stale and len(known) == len(listed):
        tell(f"{url}: {len(listed)} files, unchanged since the last look")
        return 0
    incoming = folder.with_name(f".{folder.name}.incoming")
    incoming.mkdir(parents=True, exist_ok=True)
    _copy(remote, stale, incoming, tell=tell)
    again = _list(remote)
    for file in stale:
        if file not in again:
            raise DataError(f"{remote.at(file.name)}: was replaced while it was copied; run this again")
    with atomic_directory(folder) as out:
        for file in listed:
            target = out / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(incoming / _key(file) if file in stale else folder / file.name, target)
        # Gone until the new one is in place: were the run killed in between, the next one copies once more.
        index_path(folder).unlink(missing_ok=True)
    write_json(index_path(folder), MirrorIndex(url=url, files=tuple(listed)).model_dump())
    shutil.rmtree(incoming)
    return len(stale)


def _list(remote: Remote) -> list[MirroredFile]:
    files = [_listed(remote, file) for file in remote.files() if not PurePosixPath(file.name).name.startswith(".")]
    if not files:
        raise DataError(f"{remote.url}: no file is there")
    return files


def _listed(remote: Remote, file: RemoteFile) -> MirroredFile:
    if not file.version:
        raise DataError(f"{remote.at(file.name)}: the store tells no version of it, so a change could not be noticed")
    return MirroredFile(name=file.name, size=file.size, version=file.version)


def _known(folder: Path) -> dict[str, MirroredFile]:
    """What the index lists and the folder still holds."""
    path = index_path(folder)
    if not path.is_file():
        return {}
    files = MirrorIndex.model_validate(read_json(path)).files
    return {file.name: file for file in files if _size(folder / file.name) == file.size}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _key(file: MirroredFile) -> str:
    return hashlib.sha256(f"{file.name}\n{file.version}\n{file.size}".encode()).hexdigest()


def _copy(remote: Remote, files: list[MirroredFile], incoming: Path, *, tell: Callable[[str], None]) -> None:
    """Copies what an earlier, cut off refresh has not copied already."""
    total, done, start = sum(file.size for file in files), 0, time.monotonic()
    for file in files:
        target = incoming / _key(file)
        if not target.exists():
            remote.download(file.name, target)
        if _size(target) != file.size:
            target.unlink()
            raise DataError(f"{remote.at(file.name)}: was replaced while it was copied; run this again")
        done += file.size
        seconds = time.monotonic() - start
        tell(f"{file.name}: {progress_line('MB', done >> 20, total >> 20, seconds=seconds)}")
