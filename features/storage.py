"""Files by URL: s3://, gs://, file://, memory:// and whatever else fsspec has a driver for.

Credentials and endpoints come from the environment and from fsspec's own configuration, never from the settings.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from features.errors import DataError
from features.files import atomic_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CHUNK_BYTES = 8 << 20
_URL = re.compile(r"[a-z][a-z0-9+.-]*(::|://)")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")


def is_url(location: str | Path) -> bool:
    """Whether a location is a URL and not a local path."""
    return bool(_URL.match(str(location)))


@dataclass(frozen=True)
class RemoteFile:
    """A file below a URL.

    Attributes:
        name: its path below the URL.
        size: bytes.
        version: what tells one content from another at the same name: an ETag, or the time of the last change.
    """

    name: str
    size: int
    version: str


@dataclass(frozen=True)
class Remote:
    """A folder at a URL; every method raises DataError with the URL when the store does not do as it is told."""

    url: str

    def at(self, name: str) -> str:
        """The URL of something in the folder."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def files(self) -> list[RemoteFile]:
        """Every file below the folder, by name; empty when there is no such folder."""
        system, root = self._open_system()
        try:
            system.invalidate_cache()
            found = system.find(root, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._failed("cannot be listed", error) from None
        base = PurePosixPath(root.strip("/"))
        return [
            RemoteFile(str(PurePosixPath(path.strip("/")).relative_to(base)), int(info["size"] or 0), _version(info))
            for path, info in sorted(found.items())
        ]

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        system, root = self._open_system()
        try:
            system.invalidate_cache()
            return bool(system.exists(f"{root}/{name}"))
        except Exception as error:
            raise self._failed("cannot be reached", error) from None

    def open(self, name: str) -> IO[bytes]:
        """A seekable file that reads what is asked for, in blocks."""
        system, root = self._open_system()
        try:
            return system.open(f"{root}/{name}" if name else root, "rb", block_size=CHUNK_BYTES)
        except FileNotFoundError:
            raise DataError(f"{self.at(name)}: no such file") from None
        except Exception as error:
            raise self._failed("cannot be read", error) from None

    def read(self, name: str) -> bytes:
        """A small file's content."""
        with self.open(name) as source:
            return source.read()

    def download(self, name: str, target: Path, *, sha256: str | None = None) -> None:
        """Copies a file to a local path, chunk by chunk, where it appears whole; its digest is compared if given."""
        digest = hashlib.sha256()
        with self.open(name) as source, atomic_file(target) as temporary, temporary.open("wb") as sink:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
            sink.flush()
            if sha256 is not None and digest.hexdigest() != sha256:
                raise DataError(f"{self.at(name)}: sha256 differs from the manifest's: its content was changed")

    def upload(self, path: Path, name: str) -> None:
        """Copies a local file, chunk by chunk; object stores show it when it is whole."""
        system, root = self._open_system()
        target = f"{root}/{name}"
        try:
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            with path.open("rb") as source, system.open(target, "wb", block_size=CHUNK_BYTES) as sink:
                while chunk := source.read(CHUNK_BYTES):
                    sink.write(chunk)
        except Exception as error:
            raise self._failed(f"cannot write {name}", error) from None

    def remove(self, name: str = "") -> None:
        """Removes a file or a folder; that it is not there is no error."""
        system, root = self._open_system()
        target = f"{root}/{name}" if name else root
        try:
            if system.exists(target):
                system.rm(target, recursive=True)
        except Exception as error:
            raise self._failed(f"cannot remove {name}", error) from None

    def _open_system(self) -> tuple[AbstractFileSystem, str]:
        scheme = re.split(r"::|://", self.url)[0]
        try:
            import fsspec  # what names no URL does without

            return fsspec.url_to_fs(self.url.rstrip("/"))
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            hint = f"pip install 'hstu2[{extra}]'" if extra else str(error)
            raise DataError(f"{self.url}: no driver for {scheme}:// is installed: {hint}") from None
        except ValueError as error:
            raise DataError(f"{self.url}: {error}") from None

    def _failed(self, what: str, error: BaseException) -> DataError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return DataError(
            f"{self.url}: {what}: {reason} ({type(error).__name__}; credentials come from the environment)"
        )


def _version(info: dict[str, Any]) -> str:
    return next((str(info[key]).strip('"') for key in _VERSION_KEYS if info.get(key)), "")
