"""The folder in which logs land: which days are there, what a night reads of them, and its frozen copy."""

from __future__ import annotations

import datetime
import fnmatch
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from features.errors import DataError
from features.files import atomic_file, read_json, write_json

_CODES = {"%Y": r"(?P<year>\d{4})", "%m": r"(?P<month>\d{2})", "%d": r"(?P<day>\d{2})"}
_DIGESTS = "digests.json"


@dataclass(frozen=True)
class LandedFile:
    """A file of the landing folder; `date` is None for a side table."""

    path: Path
    name: str
    date: datetime.date | None


@dataclass(frozen=True)
class Snapshot:
    """What a night reads: names and SHA-256 of its files, side tables included."""

    digests: Mapping[str, str]
    num_bytes: int

    @property
    def digest(self) -> str:
        """Of all names and contents."""
        return digest_of(self.digests)


def digest_of(digests: Mapping[str, str]) -> str:
    """One digest of named contents."""
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def day_matcher(pattern: str) -> Callable[[str], datetime.date | None]:
    """A function from a file's name to the day it belongs to; None for any other file.

    Raises:
        DataError: by the function, for a name that has the form of a day that does not exist.
    """
    expression = fnmatch.translate(pattern)
    for code, group in _CODES.items():
        expression = expression.replace(code, group)
    compiled = re.compile(expression)

    def match(name: str) -> datetime.date | None:
        found = compiled.match(name)
        if found is None:
            return None
        try:
            return datetime.date(*(int(found[part]) for part in ("year", "month", "day")))
        except ValueError:
            raise DataError(f"{name}: there is no such day (retrain.day_pattern {pattern})") from None

    return match


def list_logs(folder: Path, pattern: str) -> list[LandedFile]:
    """The files of the landing folder by name; hidden and temporary ones are not there yet.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of logs (retrain.logs)")
    match = day_matcher(pattern)
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [LandedFile(path, path.name, match(path.name)) for path in paths]


def arrived_days(files: Collection[LandedFile]) -> set[datetime.date]:
    """The days that have a file."""
    return {file.date for file in files if file.date is not None}


def has_settled(files: Collection[LandedFile], date: datetime.date, *, now: float, settle_seconds: float) -> bool:
    """Whether the day has a file with content, and none that changed a moment ago."""
    stats = [file.path.stat() for file in files if file.date == date]
    return any(stat.st_size for stat in stats) and all(now - stat.st_mtime >= settle_seconds for stat in stats)


def wait_for_logs(
    look: Callable[[], bool], *, deadline: float, poll_seconds: float, on_wait: Callable[[float], None]
) -> bool:
    """Looks until the logs are there or the deadline (Unix time) has passed; looks once in any case."""
    while not look():
        left = deadline - time.time()
        if left <= 0:
            return False
        on_wait(left)
        time.sleep(min(poll_seconds, left))
    return True


def files_of(files: Collection[LandedFile], days: Collection[datetime.date]) -> list[LandedFile]:
    """The files of some days, and all side tables."""
    return [file for file in files if file.date is None or file.date in days]


def digest_files(files: Collection[LandedFile], state: Path) -> Snapshot:
    """Digests of the files' contents; a file of known size and time of change is not read again.

    Args:
        files: what to digest.
        state: folder of the digests that are known already.
    """
    path = state / _DIGESTS
    known: dict[str, str] = read_json(path) if path.is_file() else {}
    fresh, digests, total = {}, {}, 0
    for file in files:
        stat = file.path.stat()
        key = f"{file.path.absolute()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
        fresh[key] = digests[file.name] = known.get(key) or file_digest(file.path)
        total += stat.st_size
    if not fresh.keys() <= known.keys():
        write_json(path, {**known, **fresh} if len(known) < 10_000 else fresh)
    return Snapshot(digests, total)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def freeze(files: Collection[LandedFile], snapshot: Snapshot, target: Path) -> None:
    """Makes `target` hold copies of exactly these files; equal files stay as they are.

    Raises:
        DataError: a file changed since its digest was taken.
    """
    target.mkdir(parents=True, exist_ok=True)
    wanted = {file.name for file in files}
    for path in target.iterdir():
        if path.name not in wanted:
            path.unlink()
    for file in files:
        copy = target / file.name
        if copy.is_file() and file_digest(copy) == snapshot.digests[file.name]:
            continue
        # A new file, never the old one rewritten: that may be a link into DVC's cache.
        with atomic_file(copy) as temporary:
            shutil.copyfile(file.path, temporary)
            if file_digest(temporary) != snapshot.digests[file.name]:
                raise DataError(f"{file.path}: changed while it was read; run the retrain again")
        os.chmod(copy, 0o644)
