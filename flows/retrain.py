"""`hstu2-retrain`: a data date's logs in, a better champion or a clear reason why not out.

Prefect shows and retries, DVC decides what is stale; what a night is, `flows.nightly` says. Nothing is taken from
Prefect's caches, and whatever is killed is taken up by the next run.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff

from features.errors import DataError
from flows.nightly.config import RetrainConfig
from flows.nightly.dates import CatchUp, catch_up, data_date
from flows.nightly.lock import BusyError, HeldLock, retrain_lock
from flows.nightly.logs import arrived_days, list_logs
from flows.nightly.night import Night, begin, logs_folder
from flows.nightly.plan import Decision, decide, look_at_window
from flows.nightly.record import NightRecord, Records
from flows.nightly.report import announce, write_page
from flows.nightly.workspace import NightlyPlaces, committed, prepare_workspace, resolve
from flows.run import log_failures_once, send_logs, sigterm_unwinds
from flows.server import prefect_api

FOREVER = 7 * 24 * 3600.0


@task(cache_policy=NO_CACHE, persist_result=False)
def step(work: Callable[[], object]) -> State[None]:
    """Does one step of a night; a problem with data or settings is a failed state in its own words."""
    try:
        found = work()
    except DataError as error:
        return Failed(message=str(error))
    return Completed(message=str(found) if isinstance(found, str) else None)


@task(cache_policy=NO_CACHE, persist_result=False)
def push_step(work: Callable[[], None]) -> None:
    """Uploads; a remote that is away for a while may be back at the next attempt."""
    work()


@flow(name="hstu2-retrain", validate_parameters=False, persist_result=False)
def retrain(
    date: str, root: str = ".", base: str = "HEAD", force: bool = False, patience: float = 0.0, held: int | None = None
) -> State[None]:
    """Retrains one data date.

    Args:
        date: the data date, YYYY-MM-DD.
        root: the repository.
        base: commit, branch or tag whose code and settings to run.
        force: run it even if it has a record and its logs have not changed.
        patience: seconds to wait for the logs from now on even when their deadline has passed.
        held: descriptor of the retrain lock if the caller, in this process, holds it.
    """
    places, day = NightlyPlaces(Path(root).absolute()), parse_date(date)
    try:
        with _locked(places, day, held) as lock:
            return _retrain(places, day, base, force=force, patience=patience, lock=lock)
    except BusyError as error:
        return Failed(name="Busy", message=str(error))


@flow(name="hstu2-nightly", validate_parameters=False, persist_result=False)
def nightly(root: str = ".", base: str = "HEAD") -> State[None]:
    """What the schedule starts: retrains the newest missing date and lists the older ones.

    Args:
        root: the repository.
        base: commit, branch or tag whose code and settings to run.
    """
    say = get_run_logger().info
    places = NightlyPlaces(Path(root).absolute())
    scheduled = flow_run.scheduled_start_time or datetime.datetime.now(datetime.UTC)
    try:
        with _locked(places, None, None) as lock:
            # Runs that piled up while nothing listened all work on the newest date, and find it done but once.
            todo = tonight(places, base, max(scheduled, datetime.datetime.now(datetime.UTC)))
            if todo.later:
                say(
                    f"also missing, for `hstu2 retrain --from {todo.later[0]} --to {todo.later[-1]}`: "
                    + ", ".join(map(str, todo.later))
                )
            if todo.run is None:
                return Completed(name="Nothing", message="every date up to tonight's has been run")
            return _retrain(places, todo.run, base, force=False, patience=0.0, lock=lock)
    except BusyError as error:
        return Failed(name="Busy", message=str(error))


def tonight(places: NightlyPlaces, base: str, now: datetime.datetime | None = None) -> CatchUp:
    """What a night works on that starts now, by the settings of a commit.

    Args:
        places: of the repository.
        base: commit, branch or tag.
        now: when the night starts, with a time zone.
    """
    config = committed(places.root, resolve(places.root, base), RetrainConfig)
    arrived = arrived_days(list_logs(logs_folder(places, config), config.day_pattern))
    records = Records(places.folder).all()
    # A date that failed for want of logs is missing again as soon as they are there.
    finished = {day for day, record in records.items() if record.day_digest is not None or day not in arrived}
    return catch_up(data_date(now or datetime.datetime.now(datetime.UTC), config.lag_days), finished, arrived)


def _retrain(
    places: NightlyPlaces, date: datetime.date, base: str, *, force: bool, patience: float, lock: HeldLock
) -> State[None]:
    say = get_run_logger().info
    prepare_workspace(places, commit := resolve(places.root, base))
    night = begin(places, date, commit, held=(lock.descriptor,), say=say)
    decision = look(night, force=force)
    if not decision.run:
        night.progress.records.mark(None)
        return Completed(name="Unchanged", message=f"{date} {decision.why}")
    say(f"{date} {decision.why}")
    record = _run(night, patience)
    write_page(places)
    announce(record, places)
    message = f"{date} {record.outcome}: {record.reason}"
    return (
        Failed(message=message)
        if record.outcome == "failed"
        else Completed(name=record.outcome.capitalize(), message=message)
    )


def look(night: Night, *, force: bool) -> Decision:
    """Whether the date needs a run, from its record and the logs as they are now."""
    record = night.progress.records.get(night.date)
    if record is None:
        return decide(None, "", force=force)
    files = list_logs(logs_folder(night.places, night.config), night.config.day_pattern)
    window = look_at_window(files, night.date, night.config, places=night.places, records=night.progress.records.all())
    return decide(record, window.snapshot.digest, force=force)


@dataclass(frozen=True)
class Failure:
    """The step that ended a night, and why."""

    step: str
    reason: str


def _run(night: Night, patience: float) -> NightRecord:
    """All steps; the first that fails ends the night."""
    before = {"wait for logs": lambda: night.wait(patience), "freeze logs": night.freeze, "configure": night.configure}
    after = {"gate": lambda: night.judge().reason, "commit": night.commit}
    failure = _steps(night, before) or _stages(night) or _steps(night, after)
    if failure is not None:
        return night.record("failed", f"{failure.step}: {failure.reason}", failed_step=failure.step)
    _push(night)
    with night.progress.timed("promote"):
        night.promote()
        for model in night.prune():
            night.commands.say(f"removed model {model}, never promoted in {night.config.keep_days} days")
    report = night.progress.report
    assert report is not None
    afresh = "" if night.progress.unfit is None else f"; trained from scratch, {night.progress.unfit}"
    unpushed = "" if night.progress.pushed else "; not uploaded, the next night tries again"
    return night.record("promoted" if report.promote else "kept", report.reason + afresh + unpushed)


def _stages(night: Night) -> Failure | None:
    """The stages; a second time when the champion is no start for training. DVC then skips what is done."""
    failure = _reproduce(night)
    if failure is not None and night.begin_afresh(failure.step, failure.reason):
        failure = _reproduce(night)
    return failure


def _reproduce(night: Night) -> Failure | None:
    with night.reproducing() as reproduction:
        return _steps(night, {name: partial(night.stage, name, reproduction) for name in night.stages()})


def _steps(night: Night, steps: Mapping[str, Callable[[], object]]) -> Failure | None:
    """One task after the other, up to the first that fails."""
    for name, work in steps.items():
        with night.progress.timed(name):
            state = step.with_options(name=name, task_run_name=name)(work, return_state=True)
        if not state.is_completed():
            return Failure(name, (state.message or "no reason given").strip())
    return None


def _push(night: Night) -> None:
    """Uploads, several times if need be. What stays here does not stop a promotion: it is safe in the local cache."""
    with night.progress.timed("push"):
        state = push_step.with_options(
            name="push",
            task_run_name="push",
            retries=night.config.push_attempts - 1,
            retry_delay_seconds=exponential_backoff(5),
            retry_jitter_factor=0.5,
        )(night.push, return_state=True)
    if not state.is_completed():
        night.commands.say(f"push: {state.message}")


@contextmanager
def _locked(places: NightlyPlaces, date: datetime.date | None, held: int | None) -> Iterator[HeldLock]:
    """The retrain lock: the caller's, or taken here by the policy of params.yaml."""
    if held is not None:
        yield HeldLock(held)
        return
    task_name = "tonight's date" if date is None else f"retrain of {date}"
    with retrain_lock(places.lock, task=task_name, wait_seconds=_wait_seconds(places)) as lock:
        yield lock


def _wait_seconds(places: NightlyPlaces) -> float:
    return FOREVER if RetrainConfig.load(places.root / "params.yaml").when_busy == "wait" else 0.0


def parse_date(text: str) -> datetime.date:
    """YYYY-MM-DD.

    Raises:
        DataError: it is no date.
    """
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise DataError(f"{text}: write a date as 2022-05-08") from None


def run_dates(root: Path, dates: Sequence[datetime.date], *, base: str, force: bool, patience: float) -> int:
    """Retrains dates one after the other and prints how each ended; a date without work starts no server.

    Returns:
        The exit status: 0, or 1 when a date failed.

    Raises:
        DataError: another retrain holds the repository, or the settings are not valid.
    """
    places = NightlyPlaces(root.absolute())
    with sigterm_unwinds(), _locked(places, dates[0], None) as lock:
        prepare_workspace(places, commit := resolve(places.root, base))
        todo = []
        for date in dates:
            night = begin(places, date, commit, held=(), say=print)
            decision = look(night, force=force)
            if decision.run:
                todo.append(date)
            else:
                print(f"{date} {decision.why}")
        if not todo:
            Records(places.folder).mark(None)
            return 0
        with prefect_api(places.root):
            log_failures_once()
            return max([_run_date(places, date, base, force=force, patience=patience, lock=lock) for date in todo])


def _run_date(
    places: NightlyPlaces, date: datetime.date, base: str, *, force: bool, patience: float, lock: HeldLock
) -> int:
    try:
        state = retrain(str(date), str(places.root), base, force, patience, held=lock.descriptor, return_state=True)
    finally:
        send_logs()
    print(
        state.message if state.is_completed() else f"hstu2: {state.message}",
        file=sys.stdout if state.is_completed() else sys.stderr,
    )
    return 0 if state.is_completed() else 1
