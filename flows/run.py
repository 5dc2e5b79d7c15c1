"""`hstu2-run`: a Prefect flow with one task per DVC stage. DVC decides what is stale, the flow shows and ends it."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from features.errors import DataError
from features.files import exclusive_lock
from flows.server import prefect_api
from flows.stage import StageOutcome, Status, reproducing, stage_names


def run_stages(workspace: Path, until: str | None) -> int:
    """Runs the flow on the workspace and prints how it ended.

    Args:
        workspace: folder that holds dvc.yaml.
        until: last stage to run; all of them without it.

    Returns:
        The exit status: 0, or 1 when a stage failed.

    Raises:
        DataError: there is no such stage, or another run holds the workspace.
    """
    stages = stages_until(workspace, until)
    with exclusive(workspace), sigterm_unwinds(), prefect_api(workspace):
        log_failures_once()
        try:
            state = hstu2_run(workspace, stages, return_state=True)
        finally:
            send_logs()
    if state.is_completed():
        print(state.message)
        return 0
    print(f"hstu2: {state.message}", file=sys.stderr)
    return 1


@task(cache_policy=NO_CACHE, persist_result=False)
def bring_up_to_date(finish: Callable[[Callable[[str], None]], StageOutcome]) -> State[None]:
    """Waits for a stage that DVC runs; the task fails with the stage's own last lines."""
    outcome = finish(get_run_logger().info)
    if outcome.status is Status.FAILED:
        return Failed(message=f"{outcome.stage} failed: {outcome.error}")
    return Completed(name=outcome.status.name.capitalize(), message=outcome.status.value)


@flow(name="hstu2-run", validate_parameters=False, persist_result=False)
def hstu2_run(workspace: Path, stages: tuple[str, ...]) -> State[None]:
    """Runs the stages in order and stops at the first that fails."""
    statuses = []
    with reproducing(stages, workspace) as reproduction:
        for stage in stages:
            work = bring_up_to_date.with_options(name=stage, task_run_name=stage)
            state = work(partial(reproduction.finish, stage), return_state=True)
            if not state.is_completed():
                return Failed(message=state.message)
            statuses.append(f"{stage} {state.message}")
    return Completed(message=", ".join(statuses))


def stages_until(workspace: Path, until: str | None) -> tuple[str, ...]:
    """The stages up to and including `until`; all of them without it.

    Raises:
        DataError: there is no such stage.
    """
    names = stage_names(workspace)
    if until is None:
        return names
    if until not in names:
        raise DataError(f"--until {until}: no such stage; the stages are {', '.join(names)}")
    return names[: names.index(until) + 1]


@contextmanager
def exclusive(workspace: Path) -> Iterator[None]:
    """Holds the workspace for one run; the lock is the kernel's and goes with the process.

    Raises:
        DataError: another run holds it.
    """
    path = workspace / ".dvc" / "tmp" / "hstu2-run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(path, f"{workspace}: run by process {{holder}} at the moment; wait for it or stop it"):
        yield


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Turns SIGTERM into an exception, so that the stage's processes and the server are stopped on the way out."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def log_failures_once() -> None:
    """Drops the record in which Prefect shows a failed state with an empty traceback before it logs the same state."""
    logging.getLogger("prefect.task_runs").addFilter(_is_no_repetition)


def _is_no_repetition(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Task run failed with state")


def send_logs() -> None:
    """Waits until Prefect's background thread has handed the run's log to the server, which stops next."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()
