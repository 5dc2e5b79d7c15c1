"""What became of a data date: one JSON file per date, written whole, and the marker of the night that is under way."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from features.config import Closed, describe
from features.errors import DataError
from features.files import read_json, write_json

Kind = TypeVar("Kind", bound=Closed)
Outcome = Literal["promoted", "kept", "failed"]
_RUNNING = "running.json"
# A night that fails in one of them has found something in its logs.
DATA_STEPS = ("ingest", "vocab", "streams", "validate")


class Check(Closed):
    """One condition of the gate: what was measured, where the limit is, and whether it holds."""

    name: str
    value: float | None
    limit: float | None
    passed: bool
    note: str = ""


class Interval(Closed):
    """A difference, challenger minus champion, and its confidence interval."""

    middle: float
    low: float
    high: float


class TaskComparison(Closed):
    """A task's figures of both models; the champion's are None on the first night."""

    positives: int
    judged: bool
    ne: float | None
    champion_ne: float | None
    ne_change: Interval | None
    auc: float | None
    champion_auc: float | None
    auc_change: Interval | None
    calibration: float | None


class GateReport(Closed):
    """The gate's decision: `metric` is the mean NE of the judged tasks."""

    promote: bool
    reason: str
    champion: str | None
    metric: float | None
    champion_metric: float | None
    metric_change: Interval | None
    num_requests: int
    tasks: dict[str, TaskComparison]
    checks: tuple[Check, ...]


class DataAccount(Closed):
    """What the night read.

    left_out: days of the window whose own night found them broken. absent: days without logs.
    """

    files: int
    bytes: int
    events: int | None = None
    quarantined: int | None = None
    left_out: tuple[datetime.date, ...] = ()
    absent: tuple[datetime.date, ...] = ()


class NightRecord(Closed):
    """The final word on a data date.

    outcome, reason: promoted, kept or failed, and why.
    step: where a failed night ended.
    attempt: 1 for the first time, more when the date was run again on other data.
    digest: of the logs that it read; day_digest: of the date's own.
    seconds: wall time by step.
    model, champion: ids in the store; champion is who reigned afterwards.
    base: the commit whose code and settings it ran. profile: name of what `validate` kept of a night that passed.
    start: what training began with. resumed: what was found of a night that was killed.
    earlier: outcomes of earlier attempts, oldest first.
    """

    date: datetime.date
    outcome: Outcome
    reason: str
    step: str | None
    attempt: int
    digest: str | None
    day_digest: str | None
    started_at: datetime.datetime
    seconds: dict[str, float]
    data: DataAccount | None
    model: str | None
    champion: str | None
    gate: GateReport | None
    base: str
    profile: str | None
    tag: str | None
    pushed: bool
    start: str | None = None
    resumed: str | None
    earlier: tuple[str, ...]


class Running(Closed):
    """The night that is under way: still there when the lock is free means that it was killed."""

    date: datetime.date
    pid: int
    started_at: datetime.datetime
    step: str


class Records:
    """The records of a repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> dict[datetime.date, NightRecord]:
        """Every record by date, oldest first.

        Raises:
            DataError: one is damaged; names it.
        """
        paths = sorted((self._folder / "nights").glob("????-??-??.json"))
        return {datetime.date.fromisoformat(path.stem): _load(path, NightRecord) for path in paths}

    def get(self, date: datetime.date) -> NightRecord | None:
        """A date's record."""
        path = self._path(date)
        return _load(path, NightRecord) if path.is_file() else None

    def save(self, record: NightRecord) -> None:
        """Writes a record, in place of an earlier one, and ends the night."""
        self.write(record)
        self.log(record.date, record.outcome, reason=record.reason, model=record.model, champion=record.champion)
        (self._folder / _RUNNING).unlink(missing_ok=True)

    def write(self, record: NightRecord) -> None:
        """Writes a record and leaves the night that is under way alone."""
        write_json(self._path(record.date), record.model_dump(mode="json"))

    def log(self, date: datetime.date, event: str, **details: str | float | None) -> None:
        """Appends a line of JSON to log.jsonl: time, data date, process, event and its details."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "date": str(date), "pid": os.getpid(), "event": event, **details}
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def running(self) -> Running | None:
        """The night that is under way or was killed."""
        path = self._folder / _RUNNING
        return _load(path, Running) if path.is_file() else None

    def mark(self, running: Running | None) -> None:
        """Tells what is under way, or that nothing is."""
        if running is None:
            (self._folder / _RUNNING).unlink(missing_ok=True)
        else:
            write_json(self._folder / _RUNNING, running.model_dump(mode="json"))

    def _path(self, date: datetime.date) -> Path:
        return self._folder / "nights" / f"{date}.json"


def _load(path: Path, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(describe(error, path, "record")) from None


def refused_days(
    records: Mapping[datetime.date, NightRecord], digests: Mapping[datetime.date, str]
) -> set[datetime.date]:
    """Days whose own night failed on their logs, and whose logs are still the same.

    Args:
        records: of all dates.
        digests: of each day's logs as they are now.
    """
    return {
        day
        for day, record in records.items()
        if record.step in DATA_STEPS and record.day_digest is not None and record.day_digest == digests.get(day)
    }
