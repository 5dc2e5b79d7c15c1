"""The account of a run's rows, file by file, and the rows that broke the contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features.config import Closed
from features.errors import DataError
from pipelines.sources.raw import RawRows

ROWS_PER_GROUP = 100_000
QUARANTINE = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("column", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
    ]
)


class Fault(Closed):
    """A kind of bad rows of a file: what is wrong, in which column if in one, how many rows, and the first of them."""

    column: str | None
    reason: str
    rows: int
    first_row: int
    first_content: str

    def __str__(self) -> str:
        return self.reason if self.column is None else f"column '{self.column}': {self.reason}"


class Account(Closed):
    """The rows of a file, or of a piece of it: read = kept + quarantined. Blank lines are no rows."""

    file: str
    kept: int
    num_blank: int
    faults: tuple[Fault, ...]

    @property
    def quarantined(self) -> int:
        """Bad rows."""
        return sum(fault.rows for fault in self.faults)

    @property
    def read(self) -> int:
        """All rows."""
        return self.kept + self.quarantined


def account_of(file: str, rows: RawRows) -> Account:
    """The account of one piece of a file."""
    if rows.quarantine.is_empty():
        return Account(file=file, kept=len(rows.events), num_blank=rows.num_blank, faults=())
    kinds = rows.quarantine.group_by("column", "reason", maintain_order=True).agg(
        pl.len().alias("rows"),
        pl.col("row").first().alias("first_row"),
        pl.col("content").first().alias("first_content"),
    )
    faults = tuple(Fault.model_validate(kind) for kind in kinds.iter_rows(named=True))
    return Account(file=file, kept=len(rows.events), num_blank=rows.num_blank, faults=faults)


def add_accounts(file: str, pieces: Iterable[Account]) -> Account:
    """The account of a file from those of its pieces, in order."""
    pieces = list(pieces)
    kinds: dict[tuple[str | None, str], Fault] = {}
    for fault in (fault for piece in pieces for fault in piece.faults):
        key = (fault.column, fault.reason)
        seen = kinds.get(key)
        kinds[key] = fault if seen is None else seen.model_copy(update={"rows": seen.rows + fault.rows})
    return Account(
        file=file,
        kept=sum(piece.kept for piece in pieces),
        num_blank=sum(piece.num_blank for piece in pieces),
        faults=tuple(kinds.values()),
    )


def check_ratio(account: Account, max_ratio: float) -> None:
    """Refuses a file with too many bad rows.

    Raises:
        DataError: names the file, the share, the commonest fault and its first row.
    """
    if account.quarantined <= max_ratio * account.read:
        return
    worst = max(account.faults, key=lambda fault: fault.rows)
    share = 100 * account.quarantined / account.read
    raise DataError(
        f"{account.file}: {account.quarantined:,} of {account.read:,} rows are bad ({share:.1f} %, and"
        f" data.max_quarantine_ratio allows {100 * max_ratio:g} %); most often ({worst.rows:,} rows) {worst};"
        f" first in row {worst.first_row}: {worst.first_content}"
    )


def reasons_of(accounts: Iterable[Account]) -> dict[str, int]:
    """Bad rows by reason, over all columns and files."""
    total: Counter[str] = Counter()
    for account in accounts:
        for fault in account.faults:
            total[fault.reason] += fault.rows
    return dict(sorted(total.items()))


def describe_account(account: Account) -> dict[str, object]:
    """The account as stats.json shows it."""
    return {
        "file": account.file,
        "read": account.read,
        "kept": account.kept,
        "quarantined": account.quarantined,
        "reasons": reasons_of([account]),
    }


def part_path(directory: Path, name: str) -> Path:
    """Where the bad rows of the piece `name` wait."""
    return directory / f"quarantine-{name}.parquet"


def save_part(rows: pl.DataFrame, directory: Path, name: str) -> bool:
    """Keeps the bad rows of one piece for `write_quarantine`, if there are any; tells whether there were."""
    if len(rows):
        pq.write_table(rows.to_arrow().cast(QUARANTINE), part_path(directory, name))
    return bool(len(rows))


def write_quarantine(parts: Iterable[Path], directory: Path) -> None:
    """Writes `directory/rows.parquet` from parts that `save_part` left, in the order in which they are given."""
    with pq.ParquetWriter(directory / "rows.parquet", QUARANTINE, compression="zstd") as writer:
        held = QUARANTINE.empty_table()
        for path in parts:
            held = pa.concat_tables([held, pq.read_table(path)])
            # Whole row groups only, so that the bytes do not tell how the files were cut into pieces.
            whole = len(held) // ROWS_PER_GROUP * ROWS_PER_GROUP
            if whole:
                writer.write_table(held.slice(0, whole), row_group_size=ROWS_PER_GROUP)
                held = held.slice(whole)
        writer.write_table(held.combine_chunks())
