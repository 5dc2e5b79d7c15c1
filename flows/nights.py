"""Thirty simulated nights in one command: everything that happens to a nightly retrain in a year, in twenty minutes.

A clone of this repository with small settings, a folder in which logs land, one Prefect server. Night after night the
real flow runs the real stages through DVC; what goes wrong on the way is written into `SCENARIO`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import DataError
from features.files import read_json, write_json
from flows.nightly.dates import DAY
from flows.nightly.record import NightRecord, Records
from flows.nightly.report import write_page
from flows.nightly.workspace import NightlyPlaces, git
from flows.nights_logs import World
from flows.process import interpreter_environment
from flows.retrain import retrain
from flows.run import log_failures_once, send_logs
from flows.server import prefect_api
from flows.settings import edit_params

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
TIMEZONE = "Europe/Berlin"
# The window of the first night holds a leap day; the nights cross a month's end and a clock change.
FIRST_DAY = datetime.date(2024, 2, 29)
FIRST_NIGHT = datetime.date(2024, 3, 3)
NUM_NIGHTS = 30
SCENARIO = {
    5: "missing",
    8: "late",
    11: "corrupt",
    14: "feed",
    17: "worse",
    20: "crash",
    23: "overlap",
    26: "again",
}
ENOUGH_SECONDS = 600.0
SMALL: dict[str, Any] = {
    "data.timezone": TIMEZONE,
    "data.eval_days": 1,
    "features.actions": ["is_click", "is_like", "long_view"],
    "features.streams": {"consumption": "all", "interaction": ["is_like"]},
    "features.item_categories": ["author", "tag"],
    "features.user_categories": ["user_active_degree"],
    "pipelines.num_workers": 1,
    "pipelines.num_shards": 1,
    "validate.drift.min_events": 1000,
    "model.dim": 16,
    "model.num_heads": 1,
    "model.qk_dim": 16,
    "model.v_dim": 16,
    "model.dropout": 0.1,
    "model.streams": {
        "consumption": {"max_length": 32, "num_layers": 1, "local_window": 16, "global_window": 8, "pyramid": []}
    },
    "model.contextual": [["user_active_degree"]],
    "model.heads.tasks": ["is_click", "is_like", "long_view"],
    "model.heads.hidden_dim": 16,
    "train.num_epochs": 2,
    "train.batch_size": 64,
    "train.dense_learning_rate": 0.003,
    "train.warmup_steps": 10,
    "train.checkpoint_every_steps": 20,
    "export.parity_requests": 50,
    "evaluate.groups": {"consumption": ["is_click", "long_view"], "engagement": ["is_like"]},
    "retrain.logs": "landing",
    "retrain.window_days": 4,
    "retrain.deadline_minutes": 0,
    "retrain.poll_seconds": 0.5,
    "retrain.settle_seconds": 0,
    "retrain.gate.min_requests": 300,
    "retrain.gate.min_slice_candidates": 300,
    "retrain.gate.new_user_events": 10,
    "retrain.gate.heavy_user_events": 40,
    "retrain.gate.max_latency_ratio": 5.0,
}


@dataclass(frozen=True)
class Simulation:
    """A repository in which nights are simulated, and its world."""

    root: Path
    world: World

    @property
    def landing(self) -> Path:
        """Where the logs land."""
        return self.root / "landing"

    @property
    def places(self) -> NightlyPlaces:
        """Of the repository."""
        return NightlyPlaces(self.root)

    @property
    def journal(self) -> Path:
        """What was done so far."""
        return self.root.parent / "journal.json"

    def night(self, date: datetime.date, *, patience: float = 0.0) -> NightRecord | None:
        """Runs a date in this process."""
        retrain(str(date), str(self.root), "HEAD", False, patience, return_state=True)
        return Records(self.places.folder).get(date)

    def start(self, date: datetime.date) -> subprocess.Popen[str]:
        """Runs a date as a command of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", "from flows.cli import main; main()", "retrain", "--date", str(date)],
            cwd=self.root,
            env=interpreter_environment(os.environ) | _server_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def commit(self, message: str, settings: dict[str, Any]) -> None:
        """Changes settings as a person does: an edit and a commit."""
        edit_params(self.root / "params.yaml", settings)
        git(self.root, "commit", "--quiet", "-m", message, "--", "params.yaml")

    def wait_for_step(self, date: datetime.date, name: str) -> None:
        """Waits until a night that runs elsewhere is in a step.

        Raises:
            DataError: it did not get there in time.
        """
        deadline = time.monotonic() + ENOUGH_SECONDS
        while time.monotonic() < deadline:
            running = Records(self.places.folder).running()
            if running is not None and (running.date, running.step) == (date, name):
                return
            time.sleep(0.05)
        raise DataError(f"the night of {date} did not reach {name}")


def _server_environment() -> dict[str, str]:
    from prefect.settings import PREFECT_API_URL

    return {"PREFECT_API_URL": PREFECT_API_URL.value() or "", "PYTHONPATH": str(ROOT)}


def normal(simulation: Simulation, date: datetime.date) -> None:
    """A day as it should be."""
    simulation.world.write_day(simulation.landing, date)
    simulation.night(date)


def missing(simulation: Simulation, date: datetime.date) -> None:
    """The day's logs never come."""
    simulation.night(date, patience=2.0)


def late(simulation: Simulation, date: datetime.date) -> None:
    """The logs come while the night waits."""
    writer = threading.Timer(4.0, simulation.world.write_day, (simulation.landing, date))
    writer.start()
    simulation.night(date, patience=60.0)
    writer.join()


def corrupt(simulation: Simulation, date: datetime.date) -> None:
    """A third of the rows cannot be read; in the morning the file is written again and the date run again."""
    simulation.world.write_day(simulation.landing, date, broken=0.3)
    simulation.night(date)
    simulation.world.write_day(simulation.landing, date)
    simulation.night(date)


def feed(simulation: Simulation, date: datetime.date) -> None:
    """The logging code has a mistake: the rows can be read, but they are not what they were."""
    simulation.world.write_day(simulation.landing, date, feed_error=True)
    simulation.night(date)


def worse(simulation: Simulation, date: datetime.date) -> None:
    """Somebody commits settings that ruin the model, and takes them back the next day."""
    simulation.world.write_day(simulation.landing, date)
    text = (simulation.root / "params.yaml").read_text()
    simulation.commit("Learn faster", {"train.dense_learning_rate": 0.3, "train.table_learning_rate": 5.0})
    simulation.night(date)
    (simulation.root / "params.yaml").write_text(text)
    git(simulation.root, "commit", "--quiet", "-m", "Learn as before", "--", "params.yaml")


def crash(simulation: Simulation, date: datetime.date) -> None:
    """kill -9 in the middle of training; the next run takes it up."""
    simulation.world.write_day(simulation.landing, date)
    process = simulation.start(date)
    simulation.wait_for_step(date, "train")
    time.sleep(2.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for_lock(simulation)
    simulation.night(date)


def overlap(simulation: Simulation, date: datetime.date) -> None:
    """Two at once: one works, the other says who holds the lock and goes."""
    simulation.world.write_day(simulation.landing, date)
    first = simulation.start(date)
    simulation.wait_for_step(date, "ingest")
    second = simulation.start(date)
    output, _ = second.communicate(timeout=ENOUGH_SECONDS)
    if second.returncode == 0 or "held by process" not in output:
        raise DataError(f"the second retrain of {date} was not turned away: {output}")
    logger.info("the second one: %s", output.strip().splitlines()[-1])
    first.communicate(timeout=ENOUGH_SECONDS)


def again(simulation: Simulation, date: datetime.date) -> None:
    """The same date a second time: nothing to do."""
    normal(simulation, date)
    start = time.monotonic()
    before = Records(simulation.places.folder).get(date)
    output, _ = simulation.start(date).communicate(timeout=ENOUGH_SECONDS)
    seconds = time.monotonic() - start
    if Records(simulation.places.folder).get(date) != before:
        raise DataError(f"{date} was run twice: {output}")
    logger.info("a night where nothing changed took %.1f s: %s", seconds, output.strip().splitlines()[-1])
    write_json(simulation.root.parent / "unchanged.json", {"seconds": round(seconds, 2)})


KINDS: dict[str, Callable[[Simulation, datetime.date], None]] = {
    function.__name__: function for function in (normal, missing, late, corrupt, feed, worse, crash, overlap, again)
}


def _wait_for_lock(simulation: Simulation) -> None:
    """Waits until nothing of a killed night is left."""
    from flows.nightly.lock import retrain_lock

    with retrain_lock(simulation.places.lock, task="waiting", wait_seconds=60.0):
        pass


def set_up(out: Path, repository: Path) -> Simulation:
    """Clones the repository's last commit and commits small settings there; takes up what is there already."""
    simulation = Simulation(out / "repository", World(7, TIMEZONE))
    if simulation.journal.is_file():
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
def _server(simulation: Simulation) -> Iterator[None]:
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
    with _server(simulation):
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
    parser.add_argument("--nights", type=int, default=NUM_NIGHTS)
    parser.add_argument("--stop-after", type=float, default=1e9, help="begin no night after so many seconds")
    parser.add_argument("--json", type=Path, default=Path("bench/nights.json"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("flows.nights", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
    from flows.nights_verdict import verdict

    try:
        if args.fresh:
            shutil.rmtree(args.out, ignore_errors=True)
        simulation = set_up(args.out, ROOT)
        finished = run_nights(simulation, args.nights, args.stop_after)
        write_page(simulation.places)
        if not finished:
            print("not all nights have been run; the same command without --fresh goes on")
            return
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
