"""users.parquet and items.parquet, written from the raw side tables block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from features.errors import DataError
from features.schema import side_table_schema
from pipelines.quarantine import Account, account_of, add_accounts, save_part
from pipelines.sources.raw import RawRows, SideTable
from pipelines.sources.side_tables import read_side_table


def write_side_table(table: SideTable, path: Path, work: Path) -> list[Account]:
    """Writes a side table in file order; a table without files comes out empty.

    Args:
        table: what to read.
        path: the Parquet file to write.
        work: where the bad rows wait for the quarantine.

    Returns:
        One account per raw file; none where the log is the table, for the log has one.

    Raises:
        DataError: an id has two rows.
    """
    schema = side_table_schema(table.key, tuple(category.name for category in table.categories))
    accounts, keys = [], np.empty(0, np.int64)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for file in table.files:
            pieces, found = [], [keys]
            for number, rows in enumerate(read_side_table(table, file)):
                if table.repeats:
                    rows, keys = _first_rows(rows, table.key, keys)
                    found = [keys]
                else:
                    save_part(rows.quarantine, work, f"side-{table.key}-{file.rank:06d}-{number:06d}")
                    pieces.append(account_of(file.name, rows))
                    found.append(rows.events[table.key].to_numpy())
                writer.write_table(rows.events.to_arrow().cast(schema))
            accounts += [] if table.repeats else [add_accounts(file.name, pieces)]
            keys = np.sort(np.concatenate(found))
            twice = keys[1:][keys[1:] == keys[:-1]]
            if len(twice):
                raise DataError(f"{file.name}: {table.key_column} {twice[0]} has two rows, keep one of them")
    return accounts


def _first_rows(rows: RawRows, key: str, known: np.ndarray) -> tuple[RawRows, np.ndarray]:
    """The first row of each id that is not known yet, and the sorted ids that are known then."""
    events = rows.events.unique(key, keep="first", maintain_order=True)
    ids = events[key].to_numpy()
    if len(known):
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        events = events.filter(pl.Series(known[place] != ids))
    known = np.sort(np.concatenate([known, events[key].to_numpy()]))
    return RawRows(events, rows.quarantine, rows.num_blank), known
