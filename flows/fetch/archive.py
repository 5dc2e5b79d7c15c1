"""Unpacking a zip or tar archive: nothing lands outside of the folder, and every file appears whole."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from features.errors import DataError
from features.files import atomic_file

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_MAC_FOLDER = "__MACOSX"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class _Member:
    """A regular file of an archive."""

    name: PurePosixPath
    num_bytes: int
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive which `unpack` knows."""
    return path.name.endswith(SUFFIXES)


def unpack(archive: Path, folder: Path) -> dict[str, int]:
    """Unpacks the regular files; a folder that all of them are in is left out.

    Returns:
        Bytes of each file by its path below `folder`.

    Raises:
        DataError: the archive is damaged, a member is a link or a device or would land outside of `folder`, or the
            disk is too small.
    """
    with _one_line_errors(archive), _members(archive) as members:
        strip = _common_folder(members)
        names = [PurePosixPath(*member.name.parts[strip:]) for member in members]
        free, needed = shutil.disk_usage(folder).free, sum(member.num_bytes for member in members)
        if needed > free:
            raise DataError(f"{folder}: {archive.name} unpacks to {needed:,} bytes, the disk has {free:,} left")
        for name, member in zip(names, members, strict=True):
            with member.open() as source, atomic_file(folder / name) as target, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, _COPY_BYTES)
            if os.path.getsize(folder / name) != member.num_bytes:
                raise DataError(f"{archive}: {member.name} is damaged, remove the archive and run the command again")
    return {str(name): member.num_bytes for name, member in zip(names, members, strict=True)}


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as source:
            yield [member for info in source.infolist() if (member := _zip_member(archive, source, info)) is not None]
    else:
        with tarfile.open(archive) as source:
            yield [member for info in source if (member := _tar_member(archive, source, info)) is not None]


def _zip_member(archive: Path, source: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member | None:
    name = _safe_name(archive, info.filename)
    if info.is_dir() or _MAC_FOLDER in name.parts:
        return None
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{archive}: member '{info.filename}' is a link, which a dataset needs not; it is refused")
    return _Member(name, info.file_size, lambda: source.open(info))


def _tar_member(archive: Path, source: tarfile.TarFile, info: tarfile.TarInfo) -> _Member | None:
    name = _safe_name(archive, info.name)
    if info.isdir() or name.name.startswith("._"):
        return None
    if not info.isfile():
        raise DataError(
            f"{archive}: member '{info.name}' is a link or a device, which a dataset needs not; it is refused"
        )

    def opened() -> IO[bytes]:
        stream = source.extractfile(info)
        assert stream is not None
        return stream

    return _Member(name, info.size, opened)


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts[:1] and path.parts[0].endswith(":")):
        raise DataError(f"{archive}: member '{name}' would land outside of the folder; the archive is refused")
    return path


def _common_folder(members: list[_Member]) -> int:
    tops = {member.name.parts[0] for member in members}
    return 1 if len(tops) == 1 and all(len(member.name.parts) > 1 for member in members) else 0


@contextmanager
def _one_line_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); remove it and run the command again") from None
