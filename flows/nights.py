"""Thirty simulated nights in one command: everything that happens to a nightly retrain in a year, in twenty minutes.

A clone of this repository with small settings, a folder in which logs land, one Prefect server. Night after night the
real flow runs the real stages through DVC; what goes wrong on the way is written into `SCENARIO`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from features.errors import DataError
from features.files import read_json, write_json
from flows.nightly.dates import DAY
from flows.nightly.record import Records
from flows.nightly.report import write_page
from flows.nightly.workspace import git
from flows.nights_kills import kill_every_step
from flows.nights_logs import World
from flows.nights_scenario import (
    FIRST_DAY,
    FIRST_NIGHT,
    KINDS,
    NUM_NIGHTS,
    SCENARIO,
    SMALL,
    TIMEZONE,
    Simulation,
)
from flows.nights_verdict import verdict
from flows.process import interpreter_environment
from flows.run import log_failures_once, send_logs
from flows.server import prefect_api

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
LATER_DAYS = 10


def _play_in(root: Path, args: argparse.Namespace) -> NoReturn:
    """Becomes this command in the clone."""
    words = ["--out", str(args.out.absolute()), "--nights", str(args.nights), "--stop-after", str(args.stop_after)]
    words += ["--kills"] if args.kills else []
    words += ["--json", str(args.json.absolute())]
    environment = interpreter_environment(os.environ) | {"PYTHONPATH": str(root)}
    os.chdir(root)
    os.execve(sys.executable, [sys.executable, "-m", "flows.nights", *words], environment)


def set_up(out: Path, *, fresh: bool) -> Simulation:
    """Clones the repository's last commit and commits small settings there; takes up what is there already.

    Args:
        out: where.
        fresh: begin anew.
    """
    repository = ROOT
    simulation = Simulation(out / "repository", World(7, TIMEZONE))
    if simulation.journal.is_file() and not fresh:
        return simulation
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    git(repository, "clone", "--quiet", "--no-hardlinks", str(repository), str(simulation.root.absolute()))
    for name, value in (("user.name", "nights"), ("user.email", "nights@localhost")):
        git(simulation.root, "config", name, value)
    simulation.commit("Use small settings", SMALL)
    simulation.landing.mkdir()
    simulation.world.write_side_tables(simulation.landing)
    for number in range((FIRST_NIGHT - FIRST_DAY).days):
        simulation.world.write_day(simulation.landing, FIRST_DAY + number * DAY)
    write_json(simulation.journal, {"commit": git(repository, "rev-parse", "HEAD"), "nights": {}})
    return simulation


@contextmanager
def simulated_server(simulation: Simulation) -> Iterator[None]:
    """One Prefect server, with its home beside the simulated repository."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    home = simulation.root.parent.absolute() / "prefect"
    with temporary_settings({PREFECT_HOME: home}, restore_defaults={PREFECT_API_URL}), prefect_api(simulation.root):
        log_failures_once()
        try:
            yield
        finally:
            send_logs()


def run_nights(simulation: Simulation, num_nights: int, stop_after: float) -> bool:
    """Runs the nights that are still to be run, one after the other.

    Args:
        simulation: where.
        num_nights: of the scenario.
        stop_after: begin no further night after so many seconds.

    Returns:
        Whether all of them have been run.
    """
    began = time.monotonic()
    with simulated_server(simulation):
        for number in range(1, num_nights + 1):
            journal = read_json(simulation.journal)
            date, kind = FIRST_NIGHT + (number - 1) * DAY, SCENARIO.get(number, "normal")
            if str(date) in journal["nights"]:
                continue
            if time.monotonic() - began > stop_after:
                return False
            start = time.monotonic()
            KINDS[kind](simulation, date)
            record = Records(simulation.places.folder).get(date)
            seconds = round(time.monotonic() - start, 1)
            journal["nights"][str(date)] = {"kind": kind, "seconds": seconds}
            write_json(simulation.journal, journal)
            said = "no record" if record is None else f"{record.outcome}: {record.reason.splitlines()[0]}"
            logger.info("night %d of %d, %s (%s), %.0f s: %s", number, num_nights, date, kind, seconds, said)
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.nights", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("nights"), help="where to simulate; taken up if it is there")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--kills", action="store_true", help="after the nights: kill -9 in every step of one more")
    parser.add_argument("--nights", type=int, default=NUM_NIGHTS)
    parser.add_argument("--stop-after", type=float, default=1e9, help="begin no night after so many seconds")
    parser.add_argument("--json", type=Path, default=Path("bench/nights.json"))
    args = parser.parse_args()
    simulation = set_up(args.out.absolute(), fresh=args.fresh)
    if simulation.root != ROOT:
        # Nights play with the clone's own code: whatever changes here meanwhile is not part of them.
        _play_in(simulation.root, args)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("flows.nights_scenario", "flows.nights_kills", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        finished = run_nights(simulation, args.nights, args.stop_after)
        write_page(simulation.places)
        if not finished:
            print("not all nights have been run; the same command without --fresh goes on")
            return
        if args.kills:
            with simulated_server(simulation):
                kills = kill_every_step(simulation, FIRST_NIGHT + (args.nights + LATER_DAYS) * DAY)
            write_json(args.json.with_name(f"{args.json.stem}_kills.json"), kills)
        result, problems = verdict(simulation, args.nights)
    except DataError as error:
        sys.exit(f"error: {error}")
    write_json(args.json, result)
    print(json.dumps(result["summary"], indent=1))
    print(f"{simulation.places.page}: open it in a browser")
    if problems:
        sys.exit("\n".join(f"error: {problem}" for problem in problems))


if __name__ == "__main__":
    main()
