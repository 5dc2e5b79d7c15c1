"""What earlier nights have parsed, kept under keys that tell everything it was made from.

The store is a cache: each entry carries the digests of its files, is compared with them before it is used, and is made
again when it is missing, damaged, or made by other code. Losing the store costs time, never correctness.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import ValidationError

import features
import pipelines
from features.config import Closed
from features.errors import DataError
from features.files import exclusive_lock, read_json, write_json, write_scratch_json
from features.manifest import FileEntry, file_entry

_LOG = logging.getLogger(__name__)
ENTRY = "entry.json"
STAMPS = "stamps.json"
_LAYOUT = 1  # of the store; a change makes every entry stale
# A file written less than so long before it was looked at may be written again without its times telling.
_SETTLED_NS = 2_000_000_000

Model = TypeVar("Model", bound=Closed)


class Stamp(NamedTuple):
    """What changes when a file changes, without reading it."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Asks the file system."""
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def digest(parts: Iterable[str]) -> str:
    """Hex digest of some texts in their order."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def code_digest() -> str:
    """Hex digest of this code and of the libraries that parse: what other ones made is not taken over."""
    found = hashlib.sha256(f"{_LAYOUT} {pl.__version__} {pa.__version__} {np.__version__}".encode())
    for package in (features, pipelines):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{folder.name}/{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


class Store:
    """A folder of entries, each a folder with its files and `entry.json`, which is written last."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._stamps: dict[str, tuple[list[int], str]] = {}
        self._made: set[tuple[str, str]] = set()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the store for one run, and keeps what it learnt of the raw files for the next one."""
        self.root.mkdir(parents=True, exist_ok=True)
        refusal = f"{self.root}: process {{holder}} is using it; wait for it or stop it"
        with exclusive_lock(self.root / ".lock", refusal):
            self._stamps = self._read_stamps()
            try:
                yield
            finally:
                write_json(self.root / STAMPS, self._stamps)

    def folder(self, kind: str, key: str) -> Path:
        """Where an entry is."""
        return self.root / kind / key

    def begin(self, kind: str, key: str) -> Path:
        """An empty folder for a new entry; `finish` makes it one."""
        folder = self.folder(kind, key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def finish(self, kind: str, key: str, entry: Closed) -> None:
        """Writes the entry's record; until then the folder counts for nothing."""
        record = entry.model_dump(mode="json")
        write_scratch_json(self.folder(kind, key) / ENTRY, {"digest": _record_digest(record), "entry": record})
        self._made.add((kind, key))

    def load(self, kind: str, key: str, model: type[Model]) -> Model | None:
        """An entry's record, or None when there is none that can be trusted."""
        path = self.folder(kind, key) / ENTRY
        if not path.exists():
            return None
        try:
            document = read_json(path)
            if _record_digest(document["entry"]) == document["digest"]:
                return model.model_validate(document["entry"])
        except (DataError, ValidationError, KeyError, TypeError):
            pass
        _LOG.warning("%s: damaged, made again", path)
        return None

    def is_sound(self, kind: str, key: str, files: Mapping[str, FileEntry]) -> bool:
        """Whether the files of an entry are those that it was finished with; this run's own are not read again."""
        if (kind, key) in self._made:
            return True
        for name, expected in files.items():
            path = self.folder(kind, key) / name
            if not path.exists():
                return False
            if path.stat().st_size != expected.bytes or file_entry(path) != expected:
                _LOG.warning("%s: damaged, made again", path)
                return False
        return True

    def prune(self, kind: str, keep: Iterable[str]) -> None:
        """Removes all other entries of a kind."""
        wanted = set(keep)
        for folder in (self.root / kind).glob("*"):
            if folder.name not in wanted:
                shutil.rmtree(folder)

    def content_digest(self, path: str) -> str:
        """Hex digest of a raw file's bytes; a file whose size, times and inode are known is not read again."""
        stamp = Stamp.of(path)
        known = self._stamps.get(path)
        if known is not None and known[0] == list(stamp):
            return known[1]
        seen_ns = time.time_ns()
        with open(path, "rb") as source:
            found = hashlib.file_digest(source, "sha256").hexdigest()
        self._stamps.pop(path, None)
        if max(stamp.modified_ns, stamp.changed_ns) < seen_ns - _SETTLED_NS and Stamp.of(path) == stamp:
            self._stamps[path] = (list(stamp), found)
        return found

    def _read_stamps(self) -> dict[str, tuple[list[int], str]]:
        try:
            document = read_json(self.root / STAMPS)
            return {str(path): (list(stamp), str(found)) for path, (stamp, found) in document.items()}
        except (DataError, AttributeError, TypeError, ValueError):
            return {}


def _record_digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy of it on another device."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
