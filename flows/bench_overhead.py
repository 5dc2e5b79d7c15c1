"""What Prefect and DVC cost: `hstu2 run` from scratch, and runs with nothing to do.

The overhead is what is left of a run's wall time without its stages' commands, which note when they begin and end: both
come from one run, so that other work on the machine slows both. Beside it stand the bare commands, one after the other
in the same clone of the last commit. The server's start is timed apart: it is there when `hstu2 run` begins.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from features.errors import DataError
from features.files import write_json
from flows.nightly.workspace import git
from flows.nights import set_up, simulated_server
from flows.nights_scenario import FIRST_NIGHT, KINDS, server_environment
from flows.process import interpreter_environment
from flows.server import prefect_api

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
LOGS = "data/raw/synthetic"
TIMES = "stage_times"
MADE = ("data", "models", "metrics", "reports", "dvclive", "runs", "dvc.lock", TIMES, ".dvc/cache", ".dvc/tmp")
HSTU2 = ("-c", "from flows.cli import main; main()")


@dataclass(frozen=True)
class Cost:
    """Wall and processor seconds of commands, the processor's of all their processes."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Turn:
    """A run, the seconds of its stages' commands, the bare commands if they were run too, the load before them."""

    run: Cost
    stages: float
    bare: Cost | None
    load: float

    @property
    def overhead(self) -> float:
        """Share of the flow's wall time that is not the stages'."""
        return 1 - self.stages / self.run.wall


def python(workspace: Path, *arguments: str) -> Cost:
    """Runs this interpreter in the workspace, on the workspace's code.

    Raises:
        DataError: it failed; its last lines.
    """
    before, start = _cpu_seconds(), time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=workspace,
        env=interpreter_environment(os.environ) | server_environment() | {"PYTHONPATH": str(workspace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    cost = Cost(round(time.monotonic() - start, 2), round(_cpu_seconds() - before, 2))
    if done.returncode:
        raise DataError(f"{' '.join(arguments)}:\n{done.stdout[-2000:]}")
    return cost


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def commands(root: Path) -> list[str]:
    """The stages' commands, in order."""
    return [stage["cmd"] for stage in yaml.safe_load((root / "dvc.yaml").read_text())["stages"].values()]


def take_times(workspace: Path) -> None:
    """Makes each stage's command note when it begins and when it has ended."""
    text, note = (workspace / "dvc.yaml").read_text(), f"date +%s.%N >> {TIMES}"
    for command in commands(workspace):
        text = text.replace(f"cmd: {command}\n", f"cmd: {note} && {command} && {note}\n")
    (workspace / "dvc.yaml").write_text(text)


def bare(workspace: Path) -> Cost:
    """The stages' commands as processes, in order."""
    clean(workspace)
    costs = [python(workspace, *shlex.split(command)[1:]) for command in commands(ROOT)]
    return Cost(round(sum(cost.wall for cost in costs), 2), round(sum(cost.cpu for cost in costs), 2))


def turn(workspace: Path, *, with_bare: bool) -> Turn:
    """`hstu2 run` with nothing there but the logs, and before it the bare commands if they are wanted."""
    load = os.getloadavg()[0]
    beside = bare(workspace) if with_bare else None
    clean(workspace)
    run = python(workspace, *HSTU2, "run")
    times = [float(line) for line in (workspace / TIMES).read_text().split()]
    stages = sum(end - begin for begin, end in zip(times[::2], times[1::2], strict=True))
    return Turn(run, round(stages, 2), beside, load)


def clean(workspace: Path) -> None:
    """Removes all that stages and DVC left, but not the raw logs."""
    logs, aside = workspace / LOGS, workspace / "logs-aside"
    logs.rename(aside)
    for name in MADE:
        path = workspace / name
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    logs.parent.mkdir(parents=True)
    aside.rename(logs)


def measure_run(folder: Path, num_events: int, num_turns: int, *, with_bare: bool) -> dict[str, object]:
    """Turns of `hstu2 run` from scratch, then `hstu2 run` with nothing to do."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    workspace = folder / "demo"
    git(ROOT, "clone", "--quiet", "--no-hardlinks", str(ROOT), str(workspace))
    python(workspace, *HSTU2, "data", "synthesize", LOGS, "--num-events", str(num_events), "--seed", "7")
    take_times(workspace)
    turns = []
    start = time.monotonic()
    with (
        temporary_settings({PREFECT_HOME: folder / "prefect"}, restore_defaults={PREFECT_API_URL}),
        prefect_api(workspace),
    ):
        server = time.monotonic() - start
        for number in range(1, num_turns + 1):
            turns.append(turn(workspace, with_bare=with_bare))
            logger.info("turn %d of %d: %s, overhead %.1f %%", number, num_turns, turns[-1], 100 * turns[-1].overhead)
        unchanged = python(workspace, *HSTU2, "run")
    return {
        "events": num_events,
        "turns": [asdict(one) | {"overhead": round(one.overhead, 4)} for one in turns],
        "overhead": round(statistics.median(one.overhead for one in turns), 4),
        "server_start_seconds": round(server, 2),
        "unchanged_run": asdict(unchanged),
    }


def measure_night(folder: Path) -> Cost:
    """A simulated night with nothing to do: `hstu2 retrain` on a date that was run."""
    simulation = set_up(folder / "nights", fresh=True)
    with simulated_server(simulation):
        KINDS["normal"](simulation, FIRST_NIGHT)
        return python(simulation.root, *HSTU2, "retrain", "--date", str(FIRST_NIGHT))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.bench_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--num-events", type=int, default=200_000, help="of the demo's logs")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--no-bare", dest="bare", action="store_false", help="leave the bare commands out")
    parser.add_argument("--json", type=Path, default=Path("bench/overhead.json"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logger.setLevel(logging.INFO)
    try:
        with tempfile.TemporaryDirectory(prefix="hstu2-overhead-") as scratch:
            result = measure_run(Path(scratch), args.num_events, args.turns, with_bare=args.bare)
            result["unchanged_night"] = asdict(measure_night(Path(scratch)))
    except DataError as error:
        sys.exit(f"error: {error}")
    result |= {"cores": os.cpu_count(), "commit": git(ROOT, "rev-parse", "HEAD"), "date": f"{datetime.date.today()}"}
    write_json(args.json, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
