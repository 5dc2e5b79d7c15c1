"""Side tables in the store: read again only when one of their files has changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from features.config import Closed
from features.errors import DataError
from features.manifest import FileEntry, file_entry
from pipelines.increment_store import Stamp, Store, digest
from pipelines.quarantine import Account
from pipelines.side_files import write_side_table
from pipelines.sources.raw import SideTable

SIDES = "sides"
_TABLE = "table.parquet"


class SideEntry(Closed):
    """A written side table: an account per raw file, and every file of the entry."""

    accounts: tuple[Account, ...]
    files: dict[str, FileEntry]


@dataclasses.dataclass(frozen=True)
class StoredSide:
    """A side table in the store.

    Attributes:
        key: of the store.
        table: the Parquet file.
        quarantine: the parts with the bad rows, in order.
        accounts: one per raw file.
    """

    key: str
    table: Path
    quarantine: tuple[Path, ...]
    accounts: tuple[Account, ...]


def load_side_table(table: SideTable, store: Store, code: str) -> StoredSide:
    """The side table as it was written, now or on an earlier night.

    Args:
        table: what to read.
        store: where it is kept.
        code: digest of the code that reads.

    Raises:
        DataError: an id has two rows, or a file changed meanwhile.
    """
    stamps = [Stamp.of(file.path) for file in table.files]
    contents = [store.content_digest(file.path) for file in table.files]
    files = tuple(dataclasses.replace(file, path="") for file in table.files)
    key = digest([repr(dataclasses.replace(table, files=files)), *contents, code])
    entry = store.load(SIDES, key, SideEntry)
    if entry is None or not store.is_sound(SIDES, key, entry.files):
        entry = _write(table, store, key)
        for file, stamp in zip(table.files, stamps, strict=True):
            if Stamp.of(file.path) != stamp:
                raise DataError(f"{file.name}: changed while it was read; run the ingest stage again")
        store.finish(SIDES, key, entry)
    folder = store.folder(SIDES, key)
    parts = tuple(folder / name for name in sorted(entry.files) if name != _TABLE)
    return StoredSide(key, folder / _TABLE, parts, entry.accounts)


def _write(table: SideTable, store: Store, key: str) -> SideEntry:
    folder = store.begin(SIDES, key)
    accounts = write_side_table(table, folder / _TABLE, folder)
    return SideEntry(accounts=tuple(accounts), files={path.name: file_entry(path) for path in sorted(folder.iterdir())})
