"""Parsed log files in the store: each one's good rows split by local day, its bad rows and its account."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from features.calendar import local_day_index
from features.config import Closed
from features.errors import DataError
from features.files import read_json, write_scratch_json
from features.manifest import FileEntry, file_entry
from pipelines.config import PipelinesConfig
from pipelines.engine import run_job
from pipelines.increment_store import Stamp, Store, digest
from pipelines.progress import Phase, log_progress
from pipelines.quarantine import Account, account_of, add_accounts, part_path, save_part
from pipelines.sources.plan import plan_units
from pipelines.sources.raw import LogLayout, RawFile, RawLogs, TimeRange, WorkUnit
from pipelines.sources.read import events_table, read_unit
from pipelines.spill import SpillRef, spill_path, write_spill
from pipelines.steps import Job, Step

_LOG = logging.getLogger(__name__)
LOGS = "logs"
Element = tuple[WorkUnit, str]
_EPOCH = datetime.date(1970, 1, 1)


class Batch(Closed):
    """Rows of one day: record batch `batch` of the entry's file `file`."""

    file: str
    batch: int
    rows: int


class Piece(Closed):
    """One work unit's part of an entry."""

    account: Account
    days: dict[str, Batch]
    files: dict[str, FileEntry]


class LogEntry(Closed):
    """A parsed log file; its rows have the source_order of a file of rank 0.

    Attributes:
        account: its rows.
        days: where the good rows of each local day are, in the order of source_order.
        files: every file of the entry.
    """

    account: Account
    days: dict[str, tuple[Batch, ...]]
    files: dict[str, FileEntry]

    @property
    def rows(self) -> dict[str, int]:
        """Good rows by day."""
        return {day: sum(batch.rows for batch in batches) for day, batches in self.days.items()}

    @property
    def quarantine(self) -> dict[str, FileEntry]:
        """The files that hold the bad rows."""
        return {name: entry for name, entry in self.files.items() if name.endswith(".parquet")}


@dataclasses.dataclass(frozen=True)
class KeyedLog:
    """A raw file, its key in the store, and its state from before its bytes were looked at."""

    file: RawFile
    key: str
    stamp: Stamp


@dataclasses.dataclass(frozen=True)
class ParsedLog:
    """A raw file and what the store has of it."""

    log: KeyedLog
    entry: LogEntry


@dataclasses.dataclass(frozen=True)
class LogReader:
    """Everything beside a file's bytes that decides what becomes of its rows."""

    layout: LogLayout
    times: TimeRange
    timezone: str
    code: str

    def key(self, file: RawFile, content: str) -> str:
        """The store's key of a file: what it is read as and its bytes, but neither its place nor its rank."""
        form = repr(dataclasses.replace(file, path="", rank=0))
        return digest([content, form, repr(self.layout), repr(self.times), self.timezone, self.code])


class ReadUnit(Step):
    """(work unit, folder) in; the unit's rows by day, its bad rows and its record on disk."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader

    def process(self, element: Element) -> None:
        """Reads, checks, splits and spills."""
        unit, folder = element[0], Path(element[1])
        rows = read_unit(unit, self._reader.layout, self._reader.times)
        table = events_table(rows.events)
        days, place = distinct_days(local_day_index(table["timestamp_ms"].to_numpy(), self._reader.timezone))
        refs = write_spill(table, place, folder, unit.name) if len(table) else []
        paths = [spill_path(folder, unit.name)] if refs else []
        if save_part(rows.quarantine, folder, unit.name):
            paths.append(part_path(folder, unit.name))
        piece = Piece(
            account=account_of(unit.file.name, rows),
            days={_iso(int(days[ref.partition])): _batch(ref) for ref in refs},
            files={path.name: file_entry(path) for path in paths},
        )
        write_scratch_json(_piece_path(folder, unit), piece.model_dump(mode="json"))


def distinct_days(day: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct days, ascending, and each row's place among them; days are few, so nothing is sorted.

    Args:
        day: (N,) int64.
    """
    if len(day) == 0:
        return day, day
    first = int(day.min())
    since = day - first
    seen = np.zeros(int(since.max()) + 1, bool)
    seen[since] = True
    return np.flatnonzero(seen) + first, (np.cumsum(seen) - 1).take(since)


def _iso(day: int) -> str:
    return (_EPOCH + datetime.timedelta(days=day)).isoformat()


def _batch(ref: SpillRef) -> Batch:
    return Batch(file=Path(ref.path).name, batch=ref.batch, rows=ref.rows)


def _piece_path(folder: Path, unit: WorkUnit) -> Path:
    return folder / f"piece-{unit.name}.json"


def load_logs(logs: RawLogs, reader: LogReader, store: Store, *, config: PipelinesConfig) -> list[ParsedLog]:
    """Every log file as it was parsed, now or on an earlier night, in the order of the files.

    Raises:
        DataError: a file cannot be read, or changed meanwhile.
    """
    keyed = _keyed(logs, reader, store)
    entries = [_load(store, log.key) for log in keyed]
    fresh = [log for log, entry in zip(keyed, entries, strict=True) if entry is None]
    parsed = {found.log.key: found for found in parse_logs(fresh, reader, store, config=config)}
    known = [ParsedLog(log, entry) for log, entry in zip(keyed, entries, strict=True) if entry is not None]
    return sorted([*parsed.values(), *known], key=lambda found: found.log.file.rank)


def _keyed(logs: RawLogs, reader: LogReader, store: Store) -> list[KeyedLog]:
    def key_of(file: RawFile) -> KeyedLog:
        stamp = Stamp.of(file.path)
        return KeyedLog(file, reader.key(file, store.content_digest(file.path)), stamp)

    with ThreadPoolExecutor() as threads:
        return list(threads.map(key_of, logs.files))


def _load(store: Store, key: str) -> LogEntry | None:
    entry = store.load(LOGS, key, LogEntry)
    return entry if entry is not None and store.is_sound(LOGS, key, entry.quarantine) else None


def parse_logs(logs: list[KeyedLog], reader: LogReader, store: Store, *, config: PipelinesConfig) -> list[ParsedLog]:
    """Parses files into the store.

    Raises:
        DataError: a file cannot be read, or changed since its key was taken.
    """
    if not logs:
        return []
    elements = {log.key: _elements(log, store, config.rows_per_unit) for log in logs}
    work = [element for of_log in elements.values() for element in of_log]
    num_rows = sum(unit.num_rows for unit, _ in work)
    _LOG.info("%s rows to read in %d of the files", f"{num_rows:,}", len(logs))
    if work:
        with log_progress(Phase("rows read", num_rows, lambda: _rows_read(work))):
            run_job(Job(work, ReadUnit(reader)), config)
    for log in logs:
        if Stamp.of(log.file.path) != log.stamp:
            raise DataError(f"{log.file.name}: changed while it was read; run the ingest stage again")
    return [ParsedLog(log, _finish(log, store, elements[log.key])) for log in logs]


def _elements(log: KeyedLog, store: Store, rows_per_unit: int) -> list[Element]:
    """Units of rank 0, so that what is parsed does not depend on the files beside it, and where they go."""
    folder = store.begin(LOGS, log.key)
    return [(unit, str(folder)) for unit in plan_units(dataclasses.replace(log.file, rank=0), rows_per_unit)]


def _rows_read(work: list[Element]) -> int:
    return sum(unit.num_rows for unit, folder in work if _piece_path(Path(folder), unit).exists())


def _finish(log: KeyedLog, store: Store, elements: list[Element]) -> LogEntry:
    """Joins the pieces of a file to an entry."""
    paths = [_piece_path(Path(folder), unit) for unit, folder in elements]
    pieces = [Piece.model_validate(read_json(path)) for path in paths]
    days: dict[str, list[Batch]] = {}
    for piece in pieces:
        for day, batch in piece.days.items():
            days.setdefault(day, []).append(batch)
    entry = LogEntry(
        account=add_accounts(log.file.name, [piece.account for piece in pieces]),
        days={day: tuple(batches) for day, batches in sorted(days.items())},
        files={name: found for piece in pieces for name, found in piece.files.items()},
    )
    store.finish(LOGS, log.key, entry)
    for path in paths:
        path.unlink()
    return entry
