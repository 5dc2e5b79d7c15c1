"""Which days the raw logs have, file by file as they were parsed."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from features.config import DataConfig, FeaturesConfig, WindowConfig
from features.errors import DataError
from pipelines.config import PipelinesConfig
from pipelines.increment_days import in_window
from pipelines.increment_logs import LogReader, load_logs
from pipelines.increment_store import Store, code_digest
from pipelines.sources.plan import plan_logs


@dataclass(frozen=True)
class WindowDays:
    """The days of the logs as a window sees them.

    Attributes:
        rows: good rows of each day of the window that has some, by ISO date.
        missing: days of the window without rows.
        outside: good rows of each other day.
    """

    rows: dict[str, int]
    missing: tuple[str, ...]
    outside: dict[str, int]


def find_days(params: Path) -> WindowDays:
    """Parses what is new into the store, as the next ingest would, and counts the rows of all days.

    Raises:
        DataError: a file cannot be read, or there is no window or no store.
    """
    data, config = DataConfig.load(params), PipelinesConfig.load(params)
    if data.window is None or config.store is None:
        raise DataError(f"{params}: data.window and pipelines.store are needed to tell which days the logs have")
    logs = plan_logs(data, FeaturesConfig.load(params))
    store = Store(config.store)
    with store.opened():
        reader = LogReader(logs.layout, logs.times, data.timezone, code_digest())
        parsed = load_logs(logs, reader, store, config=config)
    total: Counter[str] = Counter()
    for log in parsed:
        total.update(log.entry.rows)
    return split_days(total, data.window)


def split_days(rows: dict[str, int], window: WindowConfig) -> WindowDays:
    """Sorts days with rows, by ISO date, into those of the window and others."""
    days = ((window.first + datetime.timedelta(days=offset)).isoformat() for offset in range(window.days))
    return WindowDays(
        rows={day: count for day, count in sorted(rows.items()) if in_window(day, window)},
        missing=tuple(day for day in days if not rows.get(day)),
        outside={day: count for day, count in sorted(rows.items()) if not in_window(day, window)},
    )
