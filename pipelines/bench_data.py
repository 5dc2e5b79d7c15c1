"""The data plane at full size: speed beside a bare Polars script, memory, a hot user, determinism and the reader.

python -m pipelines.bench_data                           1, 10 and 50 million events, bench/data.json
python -m pipelines.bench_data --sizes 1 --repeats 1     a quick look

Every figure is that of whole processes, start of the interpreter included. Programs that are compared take turns.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from features.files import read_json, write_json
from pipelines.bench.logs import LogShape
from pipelines.bench.measure import Usage, run_measured
from pipelines.bench.runs import STAGES, Bench, Run, figures, shuffled_copy

_LOG = logging.getLogger(__name__)
_MILLION = 1_000_000
_OUT = Path("bench/data.json")
_HOT_USER_EVENTS = _MILLION
_LONG = LogShape(3 * _MILLION, events_per_user=7500)
_SAMPLES_OF_MEMORY = 40
_MAX_COMPARED_SIZE = 10  # the script needs 6 GB for 50 million events
_PARTS = ("sizes", "hot-user", "determinism", "reader")


def measure_size(bench: Bench, num_events: int, repeats: int) -> dict[str, Any]:
    """All stages over a log; then the streams stage and the script in turns, with the median of either."""
    run = bench.run(f"{num_events}", bench.log(LogShape(num_events)), num_events)
    usages = {stage: run.stage(stage) for stage in STAGES}
    seconds = sum(usage.seconds for usage in usages.values())
    found = {
        "num_events": num_events,
        "stages": {stage: figures(usage, num_events) for stage, usage in usages.items()},
        "all_stages_events_per_second": round(num_events / seconds),
        "all_stages_cpu_seconds": round(sum(usage.cpu_seconds for usage in usages.values()), 2),
        "peak_bytes": max(usage.peak_bytes for usage in usages.values()),
        "memory_of_streams": _thin(usages["streams"]),
        "checksum": run.checksum,
    }
    return found | (_compare(run, repeats) if repeats else {})


def _compare(run: Run, repeats: int) -> dict[str, Any]:
    turns = [(run.stage("streams"), run.best_polars()) for _ in range(repeats)]
    streams, polars = _median([ours for ours, _ in turns]), _median([script.usage for _, script in turns])
    ratios = [ours.seconds / script.usage.seconds for ours, script in turns]
    return {
        "streams": figures(streams, run.num_events),
        "polars": figures(polars, run.num_events) | {"variant": turns[0][1].variant},
        "turns": [[round(ours.seconds, 2), round(script.usage.seconds, 2)] for ours, script in turns],
        "streams_over_polars": round(statistics.median(ratios), 3),
        "streams_over_polars_cpu": round(streams.cpu_seconds / polars.cpu_seconds, 3),
    }


def _median(usages: list[Usage]) -> Usage:
    return sorted(usages, key=lambda usage: usage.seconds)[len(usages) // 2]


def _thin(usage: Usage) -> str:
    """Pairs `seconds:MB` at some times of the run."""
    step = max(len(usage.memory) // _SAMPLES_OF_MEMORY, 1)
    return " ".join(f"{second:.1f}:{size >> 20}" for second, size in usage.memory[::step])


def measure_hot_user(bench: Bench, num_events: int, repeats: int) -> dict[str, Any]:
    """Peak memory with one user of a million events, and with the same events spread over all users."""
    hot = min(_HOT_USER_EVENTS, num_events // 2)
    runs = {
        name: bench.run(f"{num_events}-{name}", bench.log(LogShape(num_events, events)), num_events)
        for name, events in (("spread", 0), ("hot", hot))
    }
    peaks: dict[str, dict[str, list[int]]] = {name: {stage: [] for stage in STAGES} for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            for stage in STAGES:
                peaks[name][stage].append(run.stage(stage).peak_bytes)
    medians = {name: {stage: statistics.median(peaks[name][stage]) for stage in STAGES} for name in runs}
    return {
        "hot_user_events": hot,
        "peak_bytes": peaks,
        "hot_over_spread": round(max(medians["hot"].values()) / max(medians["spread"].values()), 3),
        "hot_over_spread_by_stage": {
            stage: round(medians["hot"][stage] / medians["spread"][stage], 3) for stage in STAGES
        },
    }


def measure_determinism(bench: Bench, num_events: int) -> dict[str, Any]:
    """Content checksums for other workers, shards, work units and orders of files."""
    log = bench.log(LogShape(num_events))
    first = bench.run(f"{num_events}-same", log, num_events)
    for stage in STAGES:
        first.stage(stage)
    checksums = {"as set": first.checksum}
    for name, changes in (
        ("1 worker", {"num_workers": 1}),
        ("8 shards", {"num_shards": 8}),
        ("64 shards", {"num_shards": 64}),
        ("small units", {"rows_per_unit": 50_000}),
    ):
        run = bench.run(f"{num_events}-other", log, num_events, **changes)
        run.take_over(first, "events", "vocab")
        run.stage("streams")
        checksums[name] = run.checksum
    checksums["shuffled files"] = _all_stages(
        bench.run(f"{num_events}-other", shuffled_copy(log, 50_000), num_events)
    ).checksum
    return {"checksums": checksums, "equal": len(set(checksums.values())) == 1}


def _all_stages(run: Run) -> Run:
    for stage in STAGES:
        run.stage(stage)
    return run


def measure_reader(bench: Bench) -> dict[str, Any]:
    """Tokens a second of the reader, in a process of its own: pipelines know no torch."""
    run = _all_stages(bench.run("long", bench.log(_LONG), _LONG.num_events))
    out = run.folder / "reader.json"
    command = [sys.executable, "-m", "model.bench.reader", "--streams", str(run.folder / "streams"), "--out", str(out)]
    run_measured(command, cwd=bench.code)
    return dict(read_json(out))


def main() -> None:
    """Runs the parts and adds their figures to the file, each as soon as it is there."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    args = _arguments()
    bench = Bench(Path.cwd(), args.root)
    for name, part in _parts(bench, args).items():
        _LOG.info("%s ...", name)
        document = read_json(args.out) if args.out.exists() else {}
        load = os.getloadavg()[0]
        document[name] = part() | {"load_average_before": round(load, 2)}
        document["machine"] = {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}
        write_json(args.out, _with_growth(document))
        _LOG.info("%s: done, figures in %s", name, args.out)


def _parts(bench: Bench, args: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """What was asked for, by its name in the file."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {}
    for size in args.sizes if "sizes" in args.parts else ():
        repeats = args.repeats if size <= _MAX_COMPARED_SIZE else 0
        parts[f"{size:g}M"] = partial(measure_size, bench, round(size * _MILLION), repeats)
    if "hot-user" in args.parts:
        parts["hot_user"] = partial(measure_hot_user, bench, round(args.hot_size * _MILLION), args.repeats)
    if "determinism" in args.parts:
        parts["determinism"] = partial(measure_determinism, bench, round(min(args.sizes) * _MILLION))
    if "reader" in args.parts:
        parts["reader"] = partial(measure_reader, bench)
    return parts


def _with_growth(document: dict[str, Any]) -> dict[str, Any]:
    """Adds how time per event grows from ten to fifty million."""
    if "10M" in document and "50M" in document:
        document["growth_10M_to_50M"] = {
            key: round(_per_event(document["50M"], key) / _per_event(document["10M"], key), 3)
            for key in ("seconds", "cpu_seconds")
        }
    return document


def _per_event(size: dict[str, Any], key: str) -> float:
    return float(sum(stage[key] for stage in size["stages"].values()) / size["num_events"])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench_data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 10, 50], help="millions of events")
    parser.add_argument("--hot-size", type=float, default=10, help="millions of events beside which the hot user is")
    parser.add_argument("--repeats", type=int, default=3, help="turns of what is compared")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--root", type=Path, default=Path("data/bench"), help="for logs and runs, kept")
    parser.add_argument("--out", type=Path, default=_OUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
