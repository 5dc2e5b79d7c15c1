"""What a raw log is made of: its files, the pieces that workers read, and which columns hold what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from features.calendar import day_start_ms
from features.config import DataConfig
from features.errors import DataError

# source_order = rank of the file << RANK_SHIFT | row of the file.
RANK_SHIFT = 40

QUARANTINE_SCHEMA = pl.Schema(
    {"file": pl.String, "row": pl.Int64, "column": pl.String, "reason": pl.String, "content": pl.String}
)


@dataclass(frozen=True)
class FileForm:
    """How raw files hold their rows.

    Attributes:
        kind: CSV stands for all text of one row a line and separated fields; JSON for one object a line.
        separator: of CSV fields. Fields are quoted only where it is one character.
        header: names of a CSV file's columns, when its first line is a row already.
        encoding: of text.
        records: the field of a JSON line that holds a list of objects, each of them a row; None where a line is a row.
        constants: columns that the files lack, with the value of all their rows or None for null; of Parquet only.
    """

    kind: Literal["csv", "jsonl", "parquet"]
    separator: str = ","
    header: tuple[str, ...] | None = None
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    records: str | None = None
    constants: tuple[tuple[str, str | None], ...] = ()

    @property
    def first_row(self) -> int:
        """The number that people see of the first row: they count from 1, and a header line is a line."""
        return 2 if self.kind == "csv" and self.header is None else 1


@dataclass(frozen=True)
class RawFile:
    """A raw file.

    Attributes:
        path: where it is.
        name: its path below data.path, as messages and accounts show it.
        rank: its place among the log files sorted by name.
        columns: the names of its columns, in order; none for JSON, whose lines name their fields themselves.
    """

    path: str
    name: str
    rank: int
    columns: tuple[str, ...]
    form: FileForm


@dataclass(frozen=True)
class WorkUnit:
    """A piece of a file that one worker reads at once.

    Attributes:
        start, stop: bytes [start, stop) of text, cut at line ends, or row groups [start, stop) of a Parquet file.
        first_row: number of rows of the file before the piece; of text the lines, blank ones too.
        num_counted: rows of Parquet or lines of text in the piece, counted when it was planned.
        num_rows: the same, but where a JSON line holds several rows a guess that only tells progress.
    """

    file: RawFile
    start: int
    stop: int
    first_row: int
    num_counted: int
    num_rows: int

    @property
    def name(self) -> str:
        """Unique among the log's units, and in their order."""
        return f"{self.file.rank:06d}-{self.start:014d}"


@dataclass(frozen=True)
class EventTypes:
    """A column that names the action of each row, and the action bits of each of its values."""

    column: str
    masks: Mapping[str, int]


@dataclass(frozen=True)
class ActionRange:
    """An action that a number tells: the bit is set where minimum <= number <= maximum."""

    column: str
    bit: int
    minimum: float
    maximum: float


@dataclass(frozen=True)
class LogLayout:
    """Which columns of a log hold what; None where the log has no such column.

    Attributes:
        timestamp_unit: unit of numeric timestamps.
        timestamp_origin_ms: added to numeric timestamps, for clocks that do not count from 1970.
        decimals: whether times and durations may have a fraction.
        flags: (column, bit) of the 0/1 columns that make action_mask.
        event_types: a column of names that make action_mask, or some of its bits.
        ranges: numbers that do.
        watch_percent: watch time as percent of the duration, instead of watch_ms.
        duration_s: duration in seconds, instead of duration_ms.
        random_flag: 0/1 column; where it is 1, RANDOM_SURFACE is added to the surface.
    """

    user_id: str
    item_id: str
    timestamp: str
    timestamp_unit: Literal["s", "ms", "us"]
    timestamp_origin_ms: int = 0
    decimals: bool = False
    flags: tuple[tuple[str, int], ...] = ()
    event_types: EventTypes | None = None
    ranges: tuple[ActionRange, ...] = ()
    watch_ms: str | None = None
    watch_percent: str | None = None
    duration_ms: str | None = None
    duration_s: str | None = None
    value: str | None = None
    surface: str | None = None
    random_flag: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, once, in a fixed order."""
        named = [self.user_id, self.item_id, self.timestamp, *(column for column, _ in self.flags)]
        named += [self.event_types.column] if self.event_types else []
        named += [action.column for action in self.ranges]
        amounts = (self.watch_ms, self.watch_percent, self.duration_ms, self.duration_s)
        optional = (*amounts, self.value, self.surface, self.random_flag)
        return tuple(dict.fromkeys([*named, *(column for column in optional if column is not None)]))

    @property
    def dtypes(self) -> dict[str, pl.DataType]:
        """How text columns are parsed; a column with two uses that differ is read as text."""
        decimal = pl.Float64() if self.decimals else pl.Int64()
        found: dict[str, pl.DataType] = {}
        uses: list[tuple[str | None, pl.DataType]] = [(self.user_id, pl.Int64()), (self.item_id, pl.Int64())]
        uses += [(column, pl.Int64()) for column, _ in self.flags]
        uses += [(self.surface, pl.Int64()), (self.random_flag, pl.Int64())]
        uses += [(self.timestamp, decimal), (self.watch_ms, decimal), (self.duration_ms, decimal)]
        uses += [(self.watch_percent, pl.Float64()), (self.duration_s, pl.Float64()), (self.value, pl.Float64())]
        uses += [(action.column, pl.Float64()) for action in self.ranges]
        uses += [(self.event_types.column if self.event_types else None, pl.String())]
        for column, dtype in uses:
            if column is not None:
                found[column] = dtype if found.get(column, dtype) == dtype else pl.String()
        return found


@dataclass(frozen=True)
class TimeRange:
    """Times that are believed: [earliest_ms, latest_ms), with the dates for messages."""

    earliest_ms: int
    latest_ms: int
    text: str

    @classmethod
    def of(cls, data: DataConfig) -> TimeRange:
        """The range of data.earliest and data.latest in data.timezone."""
        return cls(
            day_start_ms(data.earliest, data.timezone),
            day_start_ms(data.latest, data.timezone),
            f"{data.earliest}..{data.latest}",
        )


@dataclass(frozen=True)
class RawRows:
    """What a piece of a log holds.

    Attributes:
        events: columns of EVENTS, in file order.
        quarantine: QUARANTINE_SCHEMA, in file order.
        num_blank: blank lines, which are no rows.
    """

    events: pl.DataFrame
    quarantine: pl.DataFrame
    num_blank: int


@dataclass(frozen=True)
class SideColumn:
    """A category: its name in features, its column in the file, and which of several values it is, if any."""

    name: str
    column: str
    part: int | None = None
    separator: str = ","


@dataclass(frozen=True)
class SideTable:
    """Static features of users or items.

    Attributes:
        key, key_column: our name of the id and the files'.
        repeats: whether an id may have many rows, as when the log itself is the table; the first one holds.
    """

    key: Literal["user_id", "item_id"]
    key_column: str
    categories: tuple[SideColumn, ...]
    files: tuple[RawFile, ...]
    repeats: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, once."""
        return tuple(dict.fromkeys([self.key_column, *(category.column for category in self.categories)]))


@dataclass(frozen=True)
class RawLogs:
    """A log that was found: its files in order, how to read them, and the static features beside them."""

    files: tuple[RawFile, ...]
    layout: LogLayout
    times: TimeRange
    users: SideTable
    items: SideTable


def check_folder(path: Path) -> None:
    """Refuses a data.path that is not a folder."""
    if not path.exists():
        raise DataError(f"{path}: no such folder (data.path)")
    if not path.is_dir():
        raise DataError(f"{path}: data.path must be a folder, this is a file")


def require_columns(file: RawFile, wanted: Iterable[str], why: str) -> None:
    """Refuses a file that lacks a column, naming the file, the column and who wants it."""
    known = {*file.columns, *(column for column, _ in file.form.constants)}
    for column in wanted:
        if column not in known and file.form.kind != "jsonl":
            shown = ", ".join(file.columns[:8]) + (", ..." if len(file.columns) > 8 else "")
            hint = header_hint(file.columns)
            raise DataError(f"{file.name}: column '{column}' is missing ({why}); found: {shown}{hint}")


def header_hint(columns: tuple[str, ...]) -> str:
    """The end of a message about wrong columns, when some look like values."""
    values = any(name.lstrip("-").replace(".", "", 1).isdigit() for name in columns)
    return "; is the header line missing?" if values else ""
