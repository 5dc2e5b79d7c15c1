"""The stages and the bare script, each as a process of its own, over a log of the benchmark."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from features.files import atomic_directory, read_json
from pipelines.bench.logs import ACTIONS, LogShape, write_logs
from pipelines.bench.measure import Usage, run_measured
from pipelines.bench.polars_group import VARIANTS

STAGES = ("ingest", "vocab", "streams", "validate")
_EVENTS_PER_SHARD = 400_000
_COLUMNS = {
    "user_id": "user_id",
    "item_id": "video_id",
    "timestamp": "time_ms",
    "timestamp_unit": "ms",
    "watch_ms": "play_time_ms",
    "duration_ms": "duration_ms",
    "surface": "tab",
}


@dataclass(frozen=True)
class Bench:
    """Where the benchmark works.

    Attributes:
        code: the repository, current directory of every process.
        root: holds the logs and what was made of them; nothing else is touched.
    """

    code: Path
    root: Path

    def log(self, shape: LogShape) -> Path:
        """The raw log, made when it is not there."""
        return write_logs(self.root / "raw", shape)

    def run(self, name: str, log: Path, num_events: int, **pipelines: Any) -> Run:
        """A run over a log in a folder of its own; keyword arguments change settings of `pipelines`."""
        folder = self.root / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        document = yaml.safe_load((self.code / "params.yaml").read_text())
        tabular = {"pattern": "*.parquet", "columns": _COLUMNS, "action_columns": {name: name for name in ACTIONS}}
        document["data"] |= {"source": "parquet", "path": str(log.absolute()), "tabular": tabular}
        document["features"] |= {"item_categories": [], "user_categories": []}
        num_shards = max(num_events // _EVENTS_PER_SHARD, 4)
        document["pipelines"] |= {"num_shards": num_shards, "store": str((folder / "store").absolute()), **pipelines}
        (folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        return Run(self.code, folder.absolute(), num_events)


@dataclass(frozen=True)
class Script:
    """A run of the bare script."""

    variant: str
    usage: Usage


@dataclass(frozen=True)
class Run:
    """One set of outputs of all stages."""

    code: Path
    folder: Path
    num_events: int

    def stage(self, name: str) -> Usage:
        """Runs a stage from nothing: what it wrote before is removed first."""
        for old in {"ingest": ("events", "quarantine", "store")}.get(name, (name,)):
            shutil.rmtree(self.folder / old, ignore_errors=True)
        given = {
            "ingest": {"events": "events", "quarantine": "quarantine"},
            "vocab": {"events": "events", "out": "vocab"},
            "streams": {"events": "events", "vocab": "vocab", "out": "streams"},
            "validate": {"events": "events", "vocab": "vocab", "streams": "streams", "out": "validation.json"},
        }[name]
        paths = [part for option, path in given.items() for part in (f"--{option}", str(self.folder / path))]
        command = [sys.executable, "-m", f"pipelines.{name}", "--params", str(self.folder / "params.yaml"), *paths]
        return run_measured(command, cwd=self.code)

    def polars(self, variant: str) -> Usage:
        """Runs the bare script over the events that ingest wrote, on as many threads as there are cores."""
        os.environ["POLARS_MAX_THREADS"] = str(os.cpu_count() or 1)
        out = self.folder / "polars.parquet"
        command = [sys.executable, "-m", "pipelines.bench.polars_group", str(self.folder / "events"), str(out), variant]
        usage = run_measured(command, cwd=self.code)
        rows = pq.read_metadata(out).num_rows
        if rows == 0:
            raise RuntimeError(f"{' '.join(command)}: wrote no row")
        out.unlink()
        return usage

    def best_polars(self) -> Script:
        """The variant with the least wall time, each run once."""
        return min((Script(variant, self.polars(variant)) for variant in VARIANTS), key=lambda run: run.usage.seconds)

    @property
    def checksum(self) -> str:
        """Of the streams' content."""
        return str(read_json(self.folder / "streams/manifest.json")["content_checksum"])

    def take_over(self, other: Run, *names: str) -> None:
        """Uses outputs of another run."""
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.copytree(other.folder / name, self.folder / name, copy_function=os.link)


def figures(usage: Usage, num_events: int) -> dict[str, float]:
    """What the benchmark's file tells of a process."""
    numbers = asdict(usage)
    del numbers["memory"]
    return {
        **{name: round(value, 3) for name, value in numbers.items()},
        "ns_per_event": round(1e9 * usage.seconds / num_events, 1),
        "events_per_second": round(num_events / usage.seconds),
    }


def shuffled_copy(log: Path, rows_per_group: int) -> Path:
    """The same files, written last to first and in other row groups."""
    folder = log.with_name(f"{log.name}-shuffled")
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_directory(folder) as out:
        for path in sorted(log.glob("*.parquet"), reverse=True):
            pq.write_table(pq.read_table(path), out / path.name, row_group_size=rows_per_group)
    return folder
