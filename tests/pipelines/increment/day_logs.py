"""Raw logs of a few days, and a folder in which nights follow each other."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from features.files import read_json
from pipelines.ingest import ingest

ROOT = Path(__file__).parents[3]
FIRST_MS = 1_650_556_800_000  # 2022-04-22 00:00 in Shanghai
DAY_MS = 86_400_000
ROWS = 40
HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def day_log(day: int, version: int = 0, rows: int = ROWS) -> str:
    """A day's rows, two of them bad, a fifth of them after midnight, so that a day has rows of two files."""
    rng = np.random.default_rng([day, version])
    times = FIRST_MS + day * DAY_MS + rng.integers(0, DAY_MS // 4, rows) * 5
    lines = [
        f"{user},{item},0,0,{at},{click},0,0,0,0,0,0,5000,9000,0,0,0,0,1"
        for user, item, at, click in zip(
            rng.integers(0, 5, rows), rng.integers(0, 9, rows), times, rng.integers(0, 2, rows), strict=True
        )
    ]
    lines[3] = "1,2,3"
    lines[7] = lines[7].replace(",", ",-", 1)
    return "\n".join([HEADER, *lines]) + "\n"


def log_path(raw: Path, day: int) -> Path:
    return raw / f"log_standard_{day:02d}.csv"


def put_day(raw: Path, day: int, version: int = 0) -> Path:
    raw.mkdir(exist_ok=True)
    log_path(raw, day).write_text(day_log(day, version))
    return log_path(raw, day)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


class Workspace:
    """A folder with raw logs, a store and outputs."""

    def __init__(self, root: Path) -> None:
        self.root, self.raw, self.store = root, root / "raw", root / "store"

    def run(self, name: str = "out", *, kept: bool = True, window: dict[str, Any] | None = None) -> dict[str, str]:
        """Runs ingest, with the store or without one, and digests what it wrote."""
        document = yaml.safe_load((ROOT / "params.yaml").read_text())
        document["data"] |= {"path": str(self.raw), "max_quarantine_ratio": 0.5, "window": window}
        document["features"] |= {"item_categories": [], "user_categories": []}
        document["pipelines"] |= {"store": str(self.store) if kept else None, "num_workers": 1}
        params = self.root / "params.yaml"
        params.write_text(yaml.safe_dump(document))
        out = self.root / name
        ingest(params, out / "events", out / "quarantine")
        return digests(out)

    def stats(self, name: str = "out") -> dict[str, Any]:
        return read_json(self.root / name / "events" / "stats.json")
