"""Writing an Arrow file whose digest is known when it is written."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from pathlib import Path
from typing import Any

import pyarrow as pa

from features.files import begin_sync
from features.manifest import FileEntry


def write_arrow(table: pa.Table, path: Path) -> FileEntry:
    """Writes a table as one record batch; its size and digest are taken on the way, the file is not read again.

    Renamed when whole, for two attempts may run at once; syncing is up to whoever publishes the dataset.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    with _HashedFile(temporary) as file:
        with pa.PythonFile(file, mode="w") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        entry = FileEntry(bytes=file.size, sha256=file.digest.hexdigest())
    os.replace(temporary, path)
    return entry


class _HashedFile(io.RawIOBase):
    """An unbuffered file, written from its beginning to its end, that digests what it is given."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self.size = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def write(self, data: Any) -> int:
        """Writes all of the data."""
        view = memoryview(data).cast("B")
        self.digest.update(view)
        written = 0
        while written < len(view):
            written += os.write(self._descriptor, view[written:])
        self.size += written
        return written

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            begin_sync(self._descriptor)
            os.close(self._descriptor)
        super().close()
