"""The stage `ingest`: raw logs in; EVENTS by local day, the side tables and the quarantine out.

A claim check keeps events out of the runner's shuffle: each piece of a file is read, checked, split by day and spilled
to one Arrow file; only references to the spilled batches are grouped; each day is then written from its mapped batches.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import shutil
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np

from features.calendar import local_day_index
from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from features.files import atomic_directory, read_json, write_json
from pipelines.config import PipelinesConfig
from pipelines.day_files import count_rows, write_day
from pipelines.engine import run_pipeline, run_stage
from pipelines.progress import Phase, log_progress
from pipelines.quarantine import (
    Account,
    account_of,
    add_accounts,
    check_ratio,
    describe_account,
    reasons_of,
    save_part,
    write_quarantine,
)
from pipelines.side_files import write_side_table
from pipelines.sources.plan import plan_logs, plan_units
from pipelines.sources.raw import LogLayout, RawFile, TimeRange, WorkUnit
from pipelines.sources.read import events_table, read_unit
from pipelines.spill import SpillRef, write_spill

_LOG = logging.getLogger(__name__)
_EPOCH = datetime.date(1970, 1, 1)
_WORK = "work"  # spill files, quarantine parts and accounts, removed before the events are published


class ReadUnit(beam.DoFn):
    """A work unit in, (local day, reference) pairs out; its account and its bad rows wait in files."""

    def __init__(self, layout: LogLayout, times: TimeRange, timezone: str, *, work: Path) -> None:
        self._layout = layout
        self._times = times
        self._timezone = timezone
        self._work = work

    def process(self, unit: WorkUnit) -> Iterator[tuple[int, SpillRef]]:
        """Reads, checks, splits and spills."""
        rows = read_unit(unit, self._layout, self._times)
        save_part(rows.quarantine, self._work, unit.name)
        table = events_table(rows.events)
        days, inverse = np.unique(
            local_day_index(table["timestamp_ms"].to_numpy(), self._timezone), return_inverse=True
        )
        refs = write_spill(table, inverse, self._work, unit.name) if len(table) else []
        write_json(_account_path(self._work, unit), account_of(unit.file.name, rows).model_dump())
        for ref in refs:
            yield int(days[ref.partition]), ref


class WriteDay(beam.DoFn):
    """(local day, references) in, the day's files on disk."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def process(self, element: tuple[int, Iterable[SpillRef]]) -> None:
        """Sorts and writes one day."""
        day, refs = element
        write_day(refs, self._out / f"date={_EPOCH + datetime.timedelta(days=day)}")


def ingest(params: Path, events: Path, quarantine: Path) -> None:
    """Runs the stage.

    Raises:
        DataError: the input is missing or unreadable, a file has too many bad rows, or no row is left.
    """
    data, features = DataConfig.load(params), FeaturesConfig.load(params)
    config = PipelinesConfig.load(params)
    logs = plan_logs(data, features)
    units = tuple(unit for file in logs.files for unit in plan_units(file, config.rows_per_unit))
    num_rows = sum(unit.num_rows for unit in units)
    if not num_rows:
        raise DataError(f"{data.path}: no row in {len(logs.files)} file(s), only headers")
    _LOG.info("%s: %s rows in %d files", data.path, f"{num_rows:,}", len(logs.files))
    with atomic_directory(quarantine) as quarantine_out, atomic_directory(events) as out:
        work = out / _WORK
        work.mkdir()
        side_accounts = [
            *write_side_table(logs.users, out / "users.parquet", work),
            *write_side_table(logs.items, out / "items.parquet", work),
        ]
        read = Phase("rows read", num_rows, lambda: _rows_read(work, units))
        written = Phase("rows written", num_rows, lambda: sum(count_rows(out).values()))
        with log_progress(read, written):
            reader = ReadUnit(logs.layout, logs.times, data.timezone, work=work)
            run_pipeline(lambda pipeline: _wire(pipeline, reader, units, out), config)
        accounts = _collect(work, logs.files, units)
        for account in (*accounts, *side_accounts):
            check_ratio(account, data.max_quarantine_ratio)
        days = count_rows(out)
        _reconcile(data.path, accounts, days)
        write_quarantine(work, quarantine_out)
        shutil.rmtree(work)
        write_json(out / "stats.json", _summary(accounts, side_accounts, days))
    kept, bad = (sum(counts) for counts in zip(*((a.kept, a.quarantined) for a in accounts), strict=True))
    _LOG.info("kept %s events of %d days, quarantined %s rows", f"{kept:,}", len(days), f"{bad:,}")


def _wire(pipeline: beam.Pipeline, read: ReadUnit, units: tuple[WorkUnit, ...], out: Path) -> None:
    _ = (
        pipeline
        | "Units" >> beam.Create(units)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(read).with_output_types(typing.Tuple[int, typing.Any])  # noqa: UP006
        | "Meet" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(WriteDay(out))
    )


def _account_path(work: Path, unit: WorkUnit) -> Path:
    return work / f"account-{unit.name}.json"


def _rows_read(work: Path, units: tuple[WorkUnit, ...]) -> int:
    return sum(unit.num_rows for unit in units if _account_path(work, unit).exists())


def _collect(work: Path, files: tuple[RawFile, ...], units: tuple[WorkUnit, ...]) -> list[Account]:
    """One account per log file.

    Raises:
        DataError: a piece was not read.
    """
    pieces: dict[str, list[Account]] = {file.name: [] for file in files}
    for unit in units:
        pieces[unit.file.name].append(Account.model_validate(read_json(_account_path(work, unit))))
    return [add_accounts(name, accounts) for name, accounts in pieces.items()]


def _reconcile(path: Path, accounts: list[Account], days: dict[str, int]) -> None:
    """Refuses a run that lost or doubled rows, or that has none.

    Raises:
        DataError: so it was.
    """
    kept, written = sum(account.kept for account in accounts), sum(days.values())
    if kept != written:
        raise DataError(f"{path}: {kept} good rows were read, {written} reached the day files; nothing was published")
    if not kept:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in reasons_of(accounts).items())
        raise DataError(f"{path}: no event is left, every row was quarantined: {reasons}")


def _summary(accounts: list[Account], side_accounts: list[Account], days: dict[str, int]) -> dict[str, object]:
    return {
        "read": sum(account.read for account in accounts),
        "kept": sum(account.kept for account in accounts),
        "quarantined": sum(account.quarantined for account in accounts),
        "reasons": reasons_of(accounts),
        "first_day": min(days),
        "last_day": max(days),
        "days": days,
        "window": [min(days), max(days)],
        "files": [describe_account(account) for account in accounts],
        "side_tables": [describe_account(account) for account in side_accounts],
    }


def main() -> None:
    """Command line of the stage; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.ingest", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--events", type=Path, default=Path("data/events"))
    parser.add_argument("--quarantine", type=Path, default=Path("data/quarantine"))
    args = parser.parse_args()
    run_stage(lambda: ingest(args.params, args.events, args.quarantine))


if __name__ == "__main__":
    main()
