"""What happens in the simulated nights, and how each kind of night is played."""

from __future__ import annotations

import datetime
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import DataError
from features.files import write_json
from flows.nightly.lock import retrain_lock
from flows.nightly.record import NightRecord, Records
from flows.nightly.workspace import NightlyPlaces, git
from flows.nights_logs import World
from flows.process import interpreter_environment
from flows.retrain import retrain
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
    "train.checkpoint_every_steps": 50,
    "export.parity_requests": 20,
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

    def start(self, date: datetime.date, *command: str) -> subprocess.Popen[str]:
        """Runs a date as a command of its own, `hstu2 retrain` unless told another that takes `--date`."""
        command = command or ("-c", "from flows.cli import main; main()", "retrain")
        return subprocess.Popen(
            [sys.executable, *command, "--date", str(date)],
            cwd=self.root,
            env=interpreter_environment(os.environ) | server_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def commit(self, message: str, settings: dict[str, Any]) -> None:
        """Changes settings as a person does: an edit and a commit."""
        edit_params(self.root / "params.yaml", settings)
        git(self.root, "commit", "--quiet", "-m", message, "--", "params.yaml")

    def wait_for_step(self, process: subprocess.Popen[str], name: str) -> None:
        """Waits until a night that runs as a command is in a step.

        Raises:
            DataError: it did not get there in time.
        """
        deadline = time.monotonic() + ENOUGH_SECONDS
        while time.monotonic() < deadline:
            running = Records(self.places.folder).running()
            if running is not None and (running.pid, running.step) == (process.pid, name):
                return
            time.sleep(0.05)
        raise DataError(f"process {process.pid} did not reach {name}")


def server_environment() -> dict[str, str]:
    """What a child process needs to report to this process's Prefect server, and to run this code."""
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
    simulation.wait_for_step(process, "train")
    time.sleep(2.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for_lock(simulation)
    simulation.night(date)


def overlap(simulation: Simulation, date: datetime.date) -> None:
    """Two at once: one works, the other says who holds the lock and goes."""
    simulation.world.write_day(simulation.landing, date)
    first = simulation.start(date)
    simulation.wait_for_step(first, "ingest")
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


def wait_for_lock(simulation: Simulation) -> None:
    """Waits until nothing of a killed night is left."""
    with retrain_lock(simulation.places.lock, task="waiting", wait_seconds=60.0):
        pass
