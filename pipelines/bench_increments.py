"""What a night costs when only a day is new, against a full rebuild; figures to bench/increments.json.

Daily logs in KuaiRand's CSV, a window of 14 days. Each case is run twice: with the store of the night before, and
without a store; the two must write the same bytes. Then what the streams stage could save: the share of the users and
shards that a new day touches (with it come and go the day that leaves the window and the one that becomes training
data), and the seconds that copying the others' rows takes. Whoever has seen an id that is new to the vocabulary would
have to be built again too, and is not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import yaml

from features.config import DataConfig
from features.files import write_json
from pipelines.ingest import ingest
from pipelines.streams import build_streams
from pipelines.validate import Inputs, validate
from pipelines.vocab import build_vocabularies

_LOG = logging.getLogger(__name__)
_FIRST_MS = 1_650_556_800_000  # 2022-04-22 00:00 in Shanghai
_DAY_MS = 86_400_000
_DAYS = 14
_FLAGS = {"is_click": 0.4, "is_like": 0.02, "is_follow": 0.002, "is_comment": 0.004, "is_forward": 0.002}
_FLAGS |= {"is_hate": 0.0005, "long_view": 0.25, "is_profile_enter": 0.03}


@dataclass(frozen=True)
class Logs:
    """A service's size."""

    events_per_day: int
    num_users: int

    def write(self, raw: Path, day: int, seed: int = 0) -> None:
        """Writes a day's file."""
        rng, size = np.random.default_rng([day, seed]), self.events_per_day
        duration = rng.integers(3000, 60_000, size)
        columns: dict[str, Any] = {
            "user_id": (self.num_users * rng.random(size) ** 3).astype(np.int64),
            "video_id": (200_000 * rng.random(size) ** 3).astype(np.int64),
            "date": np.full(size, 20220422),
            "hourmin": np.full(size, 1200),
            "time_ms": _FIRST_MS + day * _DAY_MS + np.sort(rng.integers(0, _DAY_MS, size)),
            **{name: (rng.random(size) < rate).astype(np.int64) for name, rate in _FLAGS.items()},
            "play_time_ms": (duration * rng.random(size)).astype(np.int64),
            "duration_ms": duration,
            "is_rand": np.zeros(size, np.int64),
            "tab": rng.integers(0, 5, size),
        }
        pl.DataFrame(columns).write_csv(raw / f"log_standard_{day:02d}.csv")


@dataclass(frozen=True)
class Night:
    """A workspace in which nights are run."""

    root: Path
    params: Path
    logs: Logs

    @property
    def raw(self) -> Path:
        """The folder of daily logs."""
        return self.root / "raw"

    def stages(self, *, name: str = "data", kept: bool = True) -> dict[str, float]:
        """Seconds of each data stage, the store of the night before used or not."""
        data = self.root / name
        _edit(self.params, "pipelines", store=str(self.root / "store") if kept else None)
        steps: dict[str, Callable[[], None]] = {
            "ingest": lambda: ingest(self.params, data / "events", data / "quarantine"),
            "vocab": lambda: build_vocabularies(self.params, data / "events", data / "vocab"),
            "streams": lambda: build_streams(self.params, data / "events", data / "vocab", data / "streams"),
            "validate": lambda: validate(
                self.params, Inputs(data / "events", data / "vocab", data / "streams"), data / "validation.json"
            ),
        }
        return {step: _seconds(run) for step, run in steps.items()}

    def case(self, name: str) -> dict[str, Any]:
        """Runs the night with the store and without, and compares."""
        increment, full = self.stages(), self.stages(name="full", kept=False)
        parts = ("events", "quarantine", "vocab", "streams")
        same = all(_digest(self.root / "data" / part) == _digest(self.root / "full" / part) for part in parts)
        found = {"increment_seconds": increment, "full_seconds": full, "same_bytes": same}
        _LOG.info("%s: ingest %.2f s against %.2f s, same bytes: %s", name, increment["ingest"], full["ingest"], same)
        return found


def run_all(events_per_day: int, root: Path) -> dict[str, Any]:
    """All cases of a service with few active users, one after another, and the new day of one with many."""
    night = _first_night(root / "active", Logs(events_per_day, num_users=20_000))
    cases = _cases(night)
    streams = {"105 events a user": cases.pop("streams")}
    sparse = _first_night(root / "sparse", Logs(events_per_day, num_users=events_per_day * 2))
    sparse.stages()
    streams["7 events a user"] = _new_day(sparse)["streams"]
    return {"events": events_per_day * _DAYS, "days": _DAYS, "cases": cases, "streams_of_a_new_day": streams}


def _cases(night: Night) -> dict[str, Any]:
    cases = {"first night": night.case("first night"), "nothing new": night.case("nothing new")}
    cases |= _new_day(night)
    night.logs.write(night.raw, _DAYS - 3, seed=1)
    cases["a corrected day"] = night.case("a corrected day")
    shutil.copyfile(night.raw / "log_standard_05.csv", night.raw / "log_standard_00a.csv")
    cases["a late file, which moves the ranks of the others"] = night.case("a late file")
    return cases


def _first_night(root: Path, logs: Logs) -> Night:
    night = Night(root, root / "params.yaml", logs)
    night.raw.mkdir(parents=True)
    for day in range(_DAYS):
        logs.write(night.raw, day)
    _write_params(night)
    return night


def _new_day(night: Night) -> dict[str, Any]:
    shutil.copytree(night.root / "data", night.root / "before")
    night.logs.write(night.raw, _DAYS)
    _move_window(night.params, _DAYS)
    found = night.case("a new day")
    return {"a new day": found, "streams": _what_streams_could_save(night, found["full_seconds"]["streams"])}


def _what_streams_could_save(night: Night, full_seconds: float) -> dict[str, Any]:
    """What a new day touches, and what it costs to carry over the rest."""
    before, after = (night.root / name / "events" for name in ("before", "data"))
    days = {path.name for path in before.glob("date=*")} ^ {path.name for path in after.glob("date=*")}
    eval_days = DataConfig.load(night.params).eval_days
    days.add(sorted(path.name for path in before.glob("date=*"))[-eval_days])
    paths = {path.relative_to(folder): path for folder in (before, after) for path in folder.glob("date=*/*.parquet")}
    touching = [path for name, path in paths.items() if name.parts[0] in days]
    users = pl.concat(pl.read_parquet(path, columns=["user_id"], hive_partitioning=False) for path in touching)
    shards = sorted((night.root / "before" / "streams").glob("shard-*/users.arrow"))
    start = time.perf_counter()
    copied = [_copy_untouched(path, users["user_id"].unique().to_arrow(), night.root / "kept.arrow") for path in shards]
    seconds = time.perf_counter() - start
    touched_share = sum(touched for touched, _ in copied) / sum(rows for _, rows in copied)
    return {
        "touched_users_share": round(touched_share, 4),
        "touched_shards_share": sum(touched > 0 for touched, _ in copied) / len(shards),
        "full_seconds": full_seconds,
        "seconds_to_copy_the_users_rows_of_the_others": round(seconds, 3),
    }


def _copy_untouched(path: Path, users: pa.Array, target: Path) -> tuple[int, int]:
    """Writes a shard's rows of other users; how many are of these users, and all."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    touched = pc.is_in(table.column("user_id"), value_set=users)
    kept = table.filter(pc.invert(touched))
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, kept.schema) as writer:
        writer.write_table(kept)
    return pc.sum(touched).as_py(), table.num_rows


def _write_params(night: Night) -> None:
    shutil.copyfile("params.yaml", night.params)
    _edit(night.params, "data", path=str(night.raw), source="kuairand", tabular=None)
    _edit(night.params, "features", item_categories=[], user_categories=[])
    _edit(night.params, "validate", baseline=None, accept=None)
    _move_window(night.params, _DAYS - 1)


def _move_window(params: Path, last: int) -> None:
    until = np.datetime64("2022-04-22") + np.timedelta64(last, "D")
    _edit(params, "data", window={"until": str(until), "days": _DAYS})


def _edit(params: Path, section: str, **settings: Any) -> None:
    document = yaml.safe_load(params.read_text())
    document[section] |= settings
    params.write_text(yaml.safe_dump(document))


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return round(time.perf_counter() - start, 3)


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench_increments", description=__doc__.splitlines()[0])
    parser.add_argument("--events-per-day", type=int, default=150_000)
    parser.add_argument("--out", type=Path, default=Path("bench/increments.json"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        figures = run_all(args.events_per_day, Path(folder))
    write_json(args.out, figures)
    _LOG.info("%s: %s", args.out, figures["streams_of_a_new_day"])


if __name__ == "__main__":
    main()
