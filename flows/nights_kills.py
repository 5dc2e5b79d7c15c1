"""`kill -9` in every step of a simulated night, and what the run after it finds.

Steps that take a while are killed while their processes are at work. The others are over too soon for that and kill
themselves, which is what running this module does: right after the step's marker is written, or with its work done and
the next step not begun.
"""

from __future__ import annotations

import datetime
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from features.errors import DataError
from flows.models import ModelStore
from flows.nightly.dates import window_days
from flows.nightly.progress import Progress
from flows.nightly.record import NightRecord, Records
from flows.nightly.workspace import TAG_PREFIX, git
from flows.nights_scenario import SMALL, Simulation, wait_for_lock
from flows.retrain import parse_date, run_dates
from flows.stage import stage_names

logger = logging.getLogger(__name__)

Moment = Literal["begin", "middle", "end"]
MIDDLE_SECONDS = 0.4
BEFORE: tuple[tuple[str, Moment], ...] = (
    ("wait for logs", "begin"),
    ("freeze logs", "begin"),
    ("freeze logs", "middle"),
    ("configure", "begin"),
    ("configure", "end"),
)
AFTER: tuple[tuple[str, Moment], ...] = (
    ("gate", "middle"),
    ("gate", "end"),
    ("commit", "begin"),
    ("commit", "end"),
    ("push", "middle"),
    ("promote", "begin"),
    ("promote", "end"),
)


def kill_every_step(simulation: Simulation, date: datetime.date) -> dict[str, str]:
    """Kills the night of a date again and again, each time somewhere else, then leaves it alone.

    Args:
        simulation: with a champion.
        date: so long after the champion's that a new model is better for sure: nothing else is promoted.

    Returns:
        By step and moment, what was left; and how the night ended.

    Raises:
        DataError: a process outlived a kill, the champion was touched too early, or the last run did not end well.
    """
    for day in window_days(date, SMALL["retrain.window_days"]):
        simulation.world.write_day(simulation.landing, day)
    steps = plan(simulation.root)
    store, found = ModelStore(simulation.places.models), {}
    reign = len(store.reign())
    for number, (step, moment) in enumerate(steps, start=1):
        found[f"{step}, {moment}"] = _kill(simulation, date, step, moment)
        crowned = len(store.reign()) - reign
        if crowned != ((step, moment) == ("promote", "end")):
            raise DataError(f"after kill -9 in {step}, {moment}: {crowned} promotions")
        logger.info("kill %d of %d, %s, %s: %s", number, len(steps), step, moment, found[f"{step}, {moment}"])
    record = simulation.night(date)
    problems = ["it has no record"] if record is None else _problems(simulation, record, {step for step, _ in steps})
    if len(store.reign()) - reign != 1:
        problems.append(f"{len(store.reign()) - reign} promotions")
    if record is None or problems:
        raise DataError(f"the night of {date} after the kills: {'; '.join(problems)}")
    return {**found, "left alone": f"{record.outcome}: {record.reason}; {record.resumed}"}


def plan(root: Path) -> tuple[tuple[str, Moment], ...]:
    """Where to kill, in the order of a night."""
    stages: tuple[tuple[str, Moment], ...] = tuple((name, "middle") for name in stage_names(root))
    return (*BEFORE, *stages, *AFTER)


def _kill(simulation: Simulation, date: datetime.date, step: str, moment: Moment) -> str:
    """One run that ends with kill -9, and what it leaves."""
    if moment == "middle":
        process = simulation.start(date)
        simulation.wait_for_step(process, step)
        time.sleep(MIDDLE_SECONDS)
        process.send_signal(signal.SIGKILL)
    else:
        process = simulation.start(date, "-m", __name__, step, moment)
    process.communicate()
    start = time.monotonic()
    wait_for_lock(simulation)
    seconds = time.monotonic() - start
    left, running = writers(simulation.places.workspace), Records(simulation.places.folder).running()
    if process.returncode != -signal.SIGKILL or left or running is None or running.step != step:
        where = None if running is None else running.step
        raise DataError(f"kill -9 in {step}, {moment}: status {process.returncode}, in {where}, left {left}")
    store = ModelStore(simulation.places.models)
    champion = store.champion()
    if champion is not None:
        store.verify(champion.model)
    whose = "none" if champion is None else f"of {champion.date}"
    return f"no process after {seconds:.1f} s, champion {whose} and whole"


def _problems(simulation: Simulation, record: NightRecord, killed: set[str]) -> list[str]:
    """What is wrong with the night that was left alone."""
    tags = git(simulation.root, "tag", "--list", f"{TAG_PREFIX}/{record.date}*").split()
    problems = [f"no kill in {step}" for step in record.seconds if step not in killed]
    if record.outcome != "promoted":
        problems.append(f"{record.outcome}: {record.reason}")
    if tags != [f"{TAG_PREFIX}/{record.date}"] or record.tag != tags[0] or not record.pushed:
        problems.append(f"tags {tags}, its own {record.tag}, uploaded {record.pushed}")
    if record.resumed is None:
        problems.append("it does not know of the kill")
    return problems


def writers(folder: Path) -> list[int]:
    """Processes whose working directory is the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.readlink() == folder.absolute():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def main() -> None:
    """Runs a date and dies: `python -m flows.nights_kills STEP begin|end --date DATE`, in the repository's root."""
    step, moment, _, date = sys.argv[1:]
    timed = Progress.timed

    @contextmanager
    def dying(progress: Progress, name: str) -> Iterator[None]:
        with timed(progress, name):
            if (name, moment) == (step, "begin"):
                os.kill(os.getpid(), signal.SIGKILL)
            yield
            if (name, moment) == (step, "end"):
                os.kill(os.getpid(), signal.SIGKILL)

    Progress.timed = dying  # type: ignore[assignment, method-assign]
    sys.exit(run_dates(Path.cwd(), [parse_date(date)], base="HEAD", force=False, patience=0.0))


if __name__ == "__main__":
    main()
