"""Files and directories that appear whole or not at all, and the lock that keeps a second writer out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features.errors import DataError

_TEMPORARY = ".tmp-"


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields an empty directory beside `target` that takes its place when the block ends without an error.

    What a killed run left beside the target is removed first. The lock is the kernel's, so it goes with the process
    that holds it, however that ends.

    Raises:
        DataError: another process is writing `target`.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(target):
        for leftover in target.parent.glob(f"{_TEMPORARY}{target.name}-*"):
            shutil.rmtree(leftover)
        temporary = target.parent / f"{_TEMPORARY}{target.name}-{os.getpid()}"
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            _replace_directory(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields a path beside `target` that is renamed to it when the block ends without an error."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_TEMPORARY}{target.name}-{os.getpid()}"
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(target: Path, value: Any) -> None:
    """Writes sorted, indented JSON atomically; NaN is refused, it is not JSON."""
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    path = target.parent / f".{target.name}.lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise DataError(f"{target}: being written by process {lock.read().strip() or 'unknown'}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _replace_directory(temporary: Path, target: Path) -> None:
    """Two renames: between them a reader finds nothing at `target`, never a mixture."""
    if target.exists():
        retired = target.parent / f"{_TEMPORARY}{target.name}-{os.getpid()}-old"
        os.rename(target, retired)
        os.rename(temporary, target)
        shutil.rmtree(retired)
    else:
        os.rename(temporary, target)
    _sync(target.parent)


def _sync_tree(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            _sync(Path(directory) / name)
        _sync(Path(directory))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
