"""Files and directories that appear whole or not at all, and the lock that keeps a second writer out."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from features.errors import DataError

_TEMPORARY = ".tmp-"
_TOKEN_BYTES = 6
_MAX_SYNCS_AT_ONCE = 16
_SYNC_FILE_RANGE_WRITE = 2  # of <fcntl.h>


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields an empty directory beside `target` that takes its place when the block ends without an error.

    What a killed run left beside the target is removed first. The lock is the kernel's, so it goes with the process
    that holds it, however that ends.

    Raises:
        DataError: another process is writing `target`.
    """
    target = target.absolute()
    if target.exists() and not target.is_dir():
        raise DataError(f"{target}: is a file, a directory is to be written there")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(target):
        for leftover in _leftovers(target):
            shutil.rmtree(leftover)
        temporary = _temporary(target)
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            _replace_directory(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields an empty file beside `target` that is renamed to it when the block ends without an error."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead_files(target)
    temporary = _temporary(target)
    # Whoever finds the file later tries this lock to tell a live writer from a dead one.
    with temporary.open("xb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """Sorted, indented JSON: equal values give equal bytes. NaN is refused, it is not JSON."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(target: Path, value: Any) -> None:
    """Writes `json_text(value)` atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def write_scratch_json(target: Path, value: Any) -> None:
    """Like `write_json`, but does not wait for the disk: for what need not outlive a crash of the machine."""
    temporary = _temporary(target)
    temporary.write_text(json_text(value), encoding="utf-8")
    os.replace(temporary, target)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def _temporary(target: Path) -> Path:
    return target.parent / f"{_TEMPORARY}{target.name}-{secrets.token_hex(_TOKEN_BYTES)}"


def _leftovers(target: Path) -> list[Path]:
    prefix = f"{_TEMPORARY}{target.name}-"
    # The length tells the target from another one whose name begins with the same word.
    length = len(prefix) + 2 * _TOKEN_BYTES
    return [path for path in target.parent.iterdir() if path.name.startswith(prefix) and len(path.name) == length]


def _remove_dead_files(target: Path) -> None:
    for path in _leftovers(target):
        try:
            with path.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue


@contextmanager
def exclusive_lock(path: Path, refusal: str) -> Iterator[None]:
    """Holds a lock file, which names its holder; the lock is the kernel's and goes with the process.

    Args:
        path: the lock file, made if it is missing and left behind.
        refusal: what to say when it is held, with `{holder}` for the process that holds it.

    Raises:
        DataError: another process holds it.
    """
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise DataError(refusal.replace("{holder}", lock.read().strip() or "unknown")) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def begin_sync(descriptor: int) -> None:
    """Lets the kernel begin to write a file to disk, so that there is little left to wait for when it is synced.

    A hint that promises nothing, and does nothing where the C library does not know the call.
    """
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def _exclusive(target: Path) -> AbstractContextManager[None]:
    refusal = f"{target}: process {{holder}} is writing it; wait for it or stop it"
    return exclusive_lock(target.parent / f".{target.name}.lock", refusal)


def _replace_directory(temporary: Path, target: Path) -> None:
    """Two renames: between them a reader finds nothing at `target`, never a mixture."""
    if target.exists():
        retired = _temporary(target)
        os.rename(target, retired)
        os.rename(temporary, target)
        shutil.rmtree(retired)
    else:
        os.rename(temporary, target)
    _sync(target.parent)


def _sync_tree(root: Path) -> None:
    paths = [Path(directory) / name for directory, _, names in os.walk(root) for name in ("", *names)]
    # The file system commits what waits at once together: decades of days are thousands of small files.
    with ThreadPoolExecutor(_MAX_SYNCS_AT_ONCE) as pool:
        for _ in pool.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
