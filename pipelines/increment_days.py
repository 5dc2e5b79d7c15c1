"""The EVENTS of each local day: taken over from the last night where nothing of the day changed, else put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from features.config import Closed, WindowConfig
from features.errors import DataError
from features.manifest import FileEntry, file_entries
from pipelines.config import PipelinesConfig
from pipelines.day_files import RankedSpill, count_rows, write_day
from pipelines.engine import run_job
from pipelines.increment_logs import LOGS, LogReader, ParsedLog, parse_logs
from pipelines.increment_store import Store, digest, link
from pipelines.progress import Phase, log_progress
from pipelines.spill import SpillRef
from pipelines.steps import Job, Step

DAYS = "days"
_INDEX = "index"
# Days of fewer rows go to a worker together: some logs have thousands of small ones.
_ROWS_PER_BUNDLE = 200_000


class DayIndex(Closed):
    """The finished days of the store: the digests of each one's files, by the day's key."""

    days: dict[str, dict[str, FileEntry]]


@dataclasses.dataclass(frozen=True)
class DayPlan:
    """A day of the window.

    Attributes:
        day: ISO date.
        key: of its files in the store; tells the files that its rows come from, and their ranks.
        rows: good rows.
        logs: the log files with rows of the day, by rank.
    """

    day: str
    key: str
    rows: int
    logs: tuple[ParsedLog, ...]

    def spills(self, store: Store) -> tuple[RankedSpill, ...]:
        """Where the rows are, in the order of source_order."""
        return tuple(
            RankedSpill(log.log.file.rank, SpillRef(0, str(store.folder(LOGS, log.log.key) / b.file), b.batch, b.rows))
            for log in self.logs
            for b in log.entry.days[self.day]
        )


class WriteDays(Step):
    """[(folder, spills), ...] in, the days' files on disk."""

    def process(self, element: list[tuple[str, tuple[RankedSpill, ...]]]) -> None:
        """Sorts and writes some days."""
        for folder, spills in element:
            write_day(spills, Path(folder))


def plan_days(logs: Iterable[ParsedLog], window: WindowConfig | None) -> list[DayPlan]:
    """The days of the window that have rows, ascending."""
    of_day: dict[str, list[ParsedLog]] = {}
    for log in sorted(logs, key=lambda log: log.log.file.rank):
        for day in log.entry.days:
            if in_window(day, window):
                of_day.setdefault(day, []).append(log)
    return [_plan(day, tuple(found)) for day, found in sorted(of_day.items())]


def in_window(day: str, window: WindowConfig | None) -> bool:
    """Whether an ISO date lies in the window; without a window every day does."""
    return window is None or window.first.isoformat() <= day <= window.until.isoformat()


def _plan(day: str, logs: tuple[ParsedLog, ...]) -> DayPlan:
    key = digest([day, *(f"{log.log.key} {log.log.file.rank}" for log in logs)])
    return DayPlan(day, key, sum(batch.rows for log in logs for batch in log.entry.days[day]), logs)


def write_days(plans: list[DayPlan], out: Path, store: Store, *, reader: LogReader, config: PipelinesConfig) -> int:
    """Puts `date=.../part-*.parquet` of all days into `out`.

    Returns:
        The number of days that had to be put together.

    Raises:
        DataError: rows were lost or doubled.
    """
    index = store.load(DAYS, _INDEX, DayIndex) or DayIndex(days={})
    stale = [plan for plan in plans if not _is_finished(store, plan, index.days.get(plan.key))]
    stale = _with_rows(stale, store, reader=reader, config=config)
    made = _put_together(stale, store, config)
    finished = {plan.key: made.get(plan.key) or index.days[plan.key] for plan in plans}
    for plan in plans:
        folder = out / f"date={plan.day}"
        folder.mkdir()
        for name in finished[plan.key]:
            link(store.folder(DAYS, plan.key) / name, folder / name)
    store.prune(DAYS, [*finished, _INDEX])
    store.begin(DAYS, _INDEX)
    store.finish(DAYS, _INDEX, DayIndex(days=finished))
    _reconcile(plans, out)
    return len(stale)


def _is_finished(store: Store, plan: DayPlan, files: Mapping[str, FileEntry] | None) -> bool:
    return bool(files) and store.is_sound(DAYS, plan.key, files or {})


def _with_rows(plans: list[DayPlan], store: Store, *, reader: LogReader, config: PipelinesConfig) -> list[DayPlan]:
    """The plans, after the raw files were read again whose parsed rows are needed and are gone or damaged."""
    needed = {log.log.key: log for plan in plans for log in plan.logs}
    damaged = [log.log for log in needed.values() if not store.is_sound(LOGS, log.log.key, log.entry.files)]
    needed |= {found.log.key: found for found in parse_logs(damaged, reader, store, config=config)}
    return [dataclasses.replace(plan, logs=tuple(needed[log.log.key] for log in plan.logs)) for plan in plans]


def _put_together(plans: list[DayPlan], store: Store, config: PipelinesConfig) -> dict[str, dict[str, FileEntry]]:
    """Writes days into the store; the digests of their files by the days' keys."""
    if not plans:
        return {}
    folders = {plan.key: store.begin(DAYS, plan.key) for plan in plans}
    num_rows = sum(plan.rows for plan in plans)
    bundles = list(_bundles(plans, store))

    def rows_written() -> int:
        return sum(plan.rows for plan in plans if any(folders[plan.key].iterdir()))

    with log_progress(Phase("rows written", num_rows, rows_written)):
        run_job(Job(bundles, WriteDays()), config)
    paths = [(key, path) for key, folder in folders.items() for path in sorted(folder.glob("part-*.parquet"))]
    made: dict[str, dict[str, FileEntry]] = {key: {} for key in folders}
    for (key, path), entry in zip(paths, file_entries(path for _, path in paths), strict=True):
        made[key][path.name] = entry
    return made


def _bundles(plans: list[DayPlan], store: Store) -> Iterator[list[tuple[str, tuple[RankedSpill, ...]]]]:
    bundle: list[tuple[str, tuple[RankedSpill, ...]]] = []
    rows = 0
    for plan in plans:
        bundle.append((str(store.folder(DAYS, plan.key)), plan.spills(store)))
        rows += plan.rows
        if rows >= _ROWS_PER_BUNDLE:
            yield bundle
            bundle, rows = [], 0
    if bundle:
        yield bundle


def _reconcile(plans: list[DayPlan], out: Path) -> None:
    """Refuses days that have lost or doubled rows.

    Raises:
        DataError: so it was.
    """
    written = count_rows(out)
    for plan in plans:
        if written.get(plan.day, 0) != plan.rows:
            raise DataError(
                f"{out.name}: {plan.rows} good rows of {plan.day} were read, {written.get(plan.day, 0)} reached its"
                " files; nothing was published"
            )
