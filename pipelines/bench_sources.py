"""Reading speed of every source: a file in its own format, from bytes to checked events, figures to bench/sources.json.

The processor's time is what is counted, so that other work on the machine does not show.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from features.config import DataConfig, FeaturesConfig
from features.files import write_json
from pipelines.sources.plan import plan_logs, plan_units
from pipelines.sources.read import read_unit

_LOG = logging.getLogger(__name__)
_NUM_EVENTS = 2_000_000
_ROWS_PER_UNIT = 500_000
_TAOBAO_MS = 1_511_539_200_000
_OTTO_MS = 1_659_304_800_000
_ACTIONS = {
    "kuairand": ["is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"],
    "movielens": ["is_liked"],
    "otto": ["is_click", "is_cart", "is_order"],
    "taobao": ["is_click", "is_cart", "is_favorite", "is_buy"],
    "yambda": ["is_listened", "is_like"],
}


def _ids(rng: np.random.Generator, num_events: int, high: int) -> np.ndarray:
    return (high * rng.random(num_events) ** 3).astype(np.int64)


def _write_kuairand(folder: Path, num_events: int, rng: np.random.Generator) -> None:
    columns = {
        "user_id": _ids(rng, num_events, 27_285),
        "video_id": _ids(rng, num_events, 32_000_000),
        "date": np.full(num_events, 20220422),
        "hourmin": np.full(num_events, 1200),
        "time_ms": 1_650_600_000_000 + rng.integers(0, 10**9, num_events),
    }
    columns |= {name: rng.integers(0, 2, num_events) for name in _ACTIONS["kuairand"]}
    columns |= {name: rng.integers(0, 60_000, num_events) for name in ("play_time_ms", "duration_ms")}
    zeros = ("profile_stay_time", "comment_stay_time", "is_profile_enter", "is_rand")
    columns |= {name: np.zeros(num_events, np.int64) for name in zeros}
    pl.DataFrame(columns | {"tab": rng.integers(0, 15, num_events)}).write_csv(folder / "log_standard_27k_part1.csv")


def _ratings(num_events: int, rng: np.random.Generator) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "userId": np.sort(_ids(rng, num_events, 138_493)),
            "movieId": _ids(rng, num_events, 27_278),
            "rating": rng.integers(1, 11, num_events) / 2,
            "timestamp": rng.integers(789_652_009, 1_427_784_002, num_events),
        }
    )


def _write_movielens_csv(folder: Path, num_events: int, rng: np.random.Generator) -> None:
    _ratings(num_events, rng).write_csv(folder / "ratings.csv")


def _write_movielens_dat(folder: Path, num_events: int, rng: np.random.Generator) -> None:
    text = _ratings(num_events, rng).write_csv(include_header=False)
    (folder / "ratings.dat").write_text(text.replace(",", "::"))


def _write_otto(folder: Path, num_events: int, rng: np.random.Generator) -> None:
    kinds = np.array(["clicks", "carts", "orders"])[np.minimum(rng.integers(0, 12, num_events) // 10, 1)]
    events = [
        f'{{"aid":{aid},"ts":{ts},"type":"{kind}"}}'
        for aid, ts, kind in zip(
            _ids(rng, num_events, 1_855_603).tolist(),
            (_OTTO_MS + rng.integers(0, 10**9, num_events)).tolist(),
            kinds.tolist(),
            strict=True,
        )
    ]
    with (folder / "train.jsonl").open("w") as sink:
        for session, start in enumerate(range(0, num_events, 17)):
            sink.write(f'{{"session":{session},"events":[{",".join(events[start : start + 17])}]}}\n')


def _write_taobao(folder: Path, num_events: int, rng: np.random.Generator) -> None:
    columns = {
        "user": _ids(rng, num_events, 1_018_012),
        "item": _ids(rng, num_events, 5_163_071),
        "category": _ids(rng, num_events, 9439),
        "behavior": np.array(["pv", "fav", "cart", "buy"])[rng.integers(0, 4, num_events)],
        "time": _TAOBAO_MS // 1000 + rng.integers(0, 9 * 86_400, num_events),
    }
    pl.DataFrame(columns).write_csv(folder / "UserBehavior.csv", include_header=False)


def _write_yambda(folder: Path, num_events: int, rng: np.random.Generator) -> None:
    columns = {
        "uid": np.sort(_ids(rng, num_events, 1_000_000)).astype(np.uint32),
        "timestamp": (5 * rng.integers(0, 5_200_000, num_events)).astype(np.uint32),
        "item_id": _ids(rng, num_events, 9_390_000).astype(np.uint32),
        "is_organic": rng.integers(0, 2, num_events).astype(np.uint8),
        "played_ratio_pct": rng.integers(0, 120, num_events).astype(np.uint16),
        "track_length_seconds": rng.integers(20, 600, num_events).astype(np.uint32),
        "event_type": np.array(["listen", "like"])[rng.integers(0, 20, num_events) // 19],
    }
    pl.DataFrame(columns).write_parquet(folder / "multi_event.parquet")


_WRITERS: dict[str, tuple[str, Callable[[Path, int, np.random.Generator], None]]] = {
    "kuairand": ("kuairand", _write_kuairand),
    "movielens, csv": ("movielens", _write_movielens_csv),
    "movielens, ::": ("movielens", _write_movielens_dat),
    "otto": ("otto", _write_otto),
    "taobao": ("taobao", _write_taobao),
    "yambda": ("yambda", _write_yambda),
}


def _settings(folder: Path, source: str) -> Path:
    document = yaml.safe_load(Path("params.yaml").read_text())
    document["data"] |= {"source": source, "path": str(folder), "earliest": "1990-01-01", "timezone": "UTC"}
    streams = {"consumption": "all"}
    nothing: dict[str, list[str]] = {"item_categories": [], "user_categories": []}
    document["features"] |= {"actions": _ACTIONS[source], "streams": streams, **nothing}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def measure(source: str, write: Callable[[Path, int, np.random.Generator], None], num_events: int) -> dict[str, float]:
    """Writes a log, reads it, and says how fast."""
    with tempfile.TemporaryDirectory(prefix="hstu2-") as name:
        folder = Path(name)
        write(folder, num_events, np.random.default_rng(7))
        params = _settings(folder, source)
        logs = plan_logs(DataConfig.load(params), FeaturesConfig.load(params))
        num_bytes = sum(Path(file.path).stat().st_size for file in logs.files)
        start = time.process_time()
        units = [unit for file in logs.files for unit in plan_units(file, _ROWS_PER_UNIT)]
        planned = time.process_time() - start
        kept = sum(len(read_unit(unit, logs.layout, logs.times).events) for unit in units)
        seconds = time.process_time() - start
    if kept != num_events:
        raise RuntimeError(f"{source}: {kept} of {num_events} events came back")
    return {
        "events": num_events,
        "file_megabytes": round(num_bytes / 1e6, 1),
        "plan_seconds": round(planned, 3),
        "million_events_per_processor_second": round(num_events / seconds / 1e6, 2),
        "megabytes_per_processor_second": round(num_bytes / seconds / 1e6, 1),
    }


def main() -> None:
    """Measures every source and writes the figures."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench_sources", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/sources.json"))
    parser.add_argument("--num-events", type=int, default=_NUM_EVENTS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures = {}
    for name, (source, write) in _WRITERS.items():
        figures[name] = measure(source, write, args.num_events)
        _LOG.info("%-15s %s", name, figures[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_json(args.out, {"sources": figures, "peak_megabytes_of_the_process": round(peak / 1e3)})


if __name__ == "__main__":
    main()
