"""The stage `ingest`: raw logs in; EVENTS by local day, the side tables and the quarantine out.

Each log file is parsed once into the store (pipelines/increment_logs.py), each day is put together once from what was
parsed (pipelines/increment_days.py). A night so reads what is new and takes the rest over, with the same bytes as if it
had read everything; without a store it does.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from features.files import atomic_directory, write_json
from pipelines.config import PipelinesConfig
from pipelines.engine import run_stage
from pipelines.increment_days import DayPlan, in_window, plan_days, write_days
from pipelines.increment_logs import LOGS, LogReader, ParsedLog, load_logs
from pipelines.increment_sides import SIDES, StoredSide, load_side_table
from pipelines.increment_store import Store, code_digest, link
from pipelines.quarantine import Account, check_ratio, describe_account, reasons_of, write_quarantine
from pipelines.sources.plan import plan_logs
from pipelines.sources.raw import RawLogs

_LOG = logging.getLogger(__name__)
_STATS = "stats.json"
_WORK = "work"  # the store of a run that keeps none, removed before the events are published


def ingest(params: Path, events: Path, quarantine: Path) -> None:
    """Runs the stage.

    Raises:
        DataError: the input is missing or unreadable, a file has too many bad rows, or no row is left.
    """
    data, features = DataConfig.load(params), FeaturesConfig.load(params)
    config = PipelinesConfig.load(params)
    logs = plan_logs(data, features)
    with atomic_directory(events) as out, atomic_directory(quarantine) as quarantine_out:
        store = Store(config.store or out / _WORK)
        with store.opened():
            stats = _ingest(logs, data, config, store=store, out=out, quarantine=quarantine_out)
        shutil.rmtree(out / _WORK, ignore_errors=True)
        write_json(out / _STATS, stats)
        # The quarantine is published first. Were the run killed between the two, old events without an account are
        # refused by all who read them, so nobody takes the new quarantine for theirs.
        (events / _STATS).unlink(missing_ok=True)


def _ingest(
    logs: RawLogs, data: DataConfig, config: PipelinesConfig, *, store: Store, out: Path, quarantine: Path
) -> dict[str, Any]:
    """Writes everything but the account, and returns that."""
    reader = LogReader(logs.layout, logs.times, data.timezone, code_digest())
    sides = [load_side_table(table, store, reader.code) for table in (logs.users, logs.items)]
    parsed = load_logs(logs, reader, store, config=config)
    held = [log for log in parsed if not _is_outside(log, data)]
    _check_rows(data, parsed, held)
    side_accounts = [account for side in sides for account in side.accounts]
    for account in (*(log.entry.account for log in held), *side_accounts):
        check_ratio(account, data.max_quarantine_ratio)
    plans = plan_days(held, data.window)
    if not plans:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in _reasons(held).items())
        raise DataError(f"{data.path}: no event is left, every row was quarantined: {reasons}")
    num_made = write_days(plans, out, store, reader=reader, config=config)
    for side, name in zip(sides, ("users", "items"), strict=True):
        link(side.table, out / f"{name}.parquet")
    write_quarantine(_quarantine_parts(held, sides, store), quarantine)
    _prune(store, parsed, sides, data)
    stats = _summary(held, side_accounts, plans, data=data)
    _LOG.info(
        "kept %s events of %d days (%d put together, %d as they were), quarantined %s rows",
        *(f"{stats['kept']:,}", len(plans), num_made, len(plans) - num_made, f"{stats['quarantined']:,}"),
    )
    return stats


def _is_outside(log: ParsedLog, data: DataConfig) -> bool:
    """Whether a file has rows, all of them of days outside of the window: then it is not part of the dataset."""
    days = log.entry.days
    return bool(days) and not any(in_window(day, data.window) for day in days)


def _check_rows(data: DataConfig, parsed: list[ParsedLog], held: list[ParsedLog]) -> None:
    """Refuses logs without a row, and a window without one."""
    if not any(log.entry.account.read for log in parsed):
        raise DataError(f"{data.path}: no row in {len(parsed)} file(s), only headers")
    if not any(log.entry.account.read for log in held):
        days = [day for log in parsed for day in log.entry.days]
        raise DataError(f"{data.path}: no row in the window (data.window); the logs have {min(days)} to {max(days)}")


def _reasons(logs: list[ParsedLog]) -> dict[str, int]:
    return reasons_of(log.entry.account for log in logs)


def _quarantine_parts(logs: list[ParsedLog], sides: list[StoredSide], store: Store) -> list[Path]:
    """The bad rows' files in the order of the raw files, the side tables last."""
    of_logs = [store.folder(LOGS, log.log.key) / name for log in logs for name in sorted(log.entry.quarantine)]
    return [*of_logs, *(path for side in sides for path in side.quarantine)]


def _prune(store: Store, parsed: list[ParsedLog], sides: list[StoredSide], data: DataConfig) -> None:
    """Forgets what no raw file is behind, and the rows (not the account) of files outside of the window."""
    store.prune(LOGS, [log.log.key for log in parsed])
    store.prune(SIDES, [side.key for side in sides])
    for log in parsed:
        if _is_outside(log, data):
            for name in log.entry.files.keys() - log.entry.quarantine.keys():
                (store.folder(LOGS, log.log.key) / name).unlink(missing_ok=True)


def _summary(
    logs: list[ParsedLog], side_accounts: list[Account], plans: list[DayPlan], *, data: DataConfig
) -> dict[str, Any]:
    """The account: read = kept + outside + quarantined, over the files that are part of the dataset."""
    days = {plan.day: plan.rows for plan in plans}
    window = data.window
    files = [_describe(log, data) for log in logs]
    return {
        **{name: sum(file[name] for file in files) for name in ("read", "kept", "outside", "quarantined")},
        "reasons": _reasons(logs),
        "first_day": min(days),
        "last_day": max(days),
        "days": days,
        "window": [min(days), max(days)] if window is None else [window.first.isoformat(), window.until.isoformat()],
        "files": files,
        "side_tables": [describe_account(account) for account in side_accounts],
    }


def _describe(log: ParsedLog, data: DataConfig) -> dict[str, Any]:
    kept = sum(rows for day, rows in log.entry.rows.items() if in_window(day, data.window))
    outside = log.entry.account.kept - kept
    return {**describe_account(log.entry.account), "kept": kept, "outside": outside}


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
