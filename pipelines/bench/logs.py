"""KuaiRand-like raw logs of any size: 30 daily Parquet files, heavy-tailed users and items, unordered rows."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.files import atomic_directory
from features.hashing import mix64

ACTIONS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter")
FIRST_DAY = datetime.date(2022, 4, 8)
NUM_DAYS = 30

_SEED = 7
_RATES = (0.35, 0.02, 0.002, 0.004, 0.002, 0.0005, 0.25, 0.03)
_MS_PER_DAY = 86_400_000
_FIRST_MS = (FIRST_DAY - datetime.date(1970, 1, 1)).days * _MS_PER_DAY
_ROWS_PER_GROUP = 262_144
_MEGA_USER_EVENTS = 100_000
_TIED_SHARE = 0.02
_REPEATED_SHARE = 0.005
_REPEATED_NEXT_DAY = 0.2
_NUM_TABS = 15
_TAB_RATES = np.array([0.45, 0.3, 0.1, 0.05, *[0.1 / 11] * 11])
_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.int64()),
        pa.field("video_id", pa.int64()),
        pa.field("time_ms", pa.int64()),
        *(pa.field(action, pa.int8()) for action in ACTIONS),
        pa.field("play_time_ms", pa.int32()),
        pa.field("duration_ms", pa.int32()),
        pa.field("tab", pa.int8()),
    ]
)


@dataclass(frozen=True)
class LogShape:
    """What decides a log's content.

    Attributes:
        num_events: rows, 0.5 % exact duplicates included; a fifth of those are in the next day's file.
        hot_user_events: events of one user beside the others; 0 spreads them over all users as the rest.
        events_per_user: on the average.
    """

    num_events: int
    hot_user_events: int = 0
    events_per_user: int = 500

    @property
    def num_users(self) -> int:
        """Users but the hot one."""
        return max(self.num_events // self.events_per_user, 100)

    @property
    def num_items(self) -> int:
        """One per 10 events."""
        return max(self.num_events // 10, 100)

    @property
    def name(self) -> str:
        """Folder name of the log."""
        hot = f"-hot-{self.hot_user_events}" if self.hot_user_events else ""
        long = "" if self.events_per_user == 500 else f"-long-{self.events_per_user}"
        return f"log-{self.num_events}{hot}{long}"


@dataclass(frozen=True)
class _World:
    """Cumulative shares of users and items, and the users' ids."""

    user_ids: np.ndarray
    user_cdf: np.ndarray
    item_cdf: np.ndarray


def write_logs(root: Path, shape: LogShape) -> Path:
    """The log's folder below `root`, written unless it is there; equal shapes give equal bytes."""
    folder = root / shape.name
    if folder.is_dir():
        return folder
    world = _world(shape)
    carried: list[np.ndarray] | None = None
    with atomic_directory(folder) as out:
        for day in range(NUM_DAYS):
            columns, later = _day(world, shape, day)
            if carried is not None:
                columns = [np.concatenate(pair) for pair in zip(columns, carried, strict=True)]
            carried = later
            order = np.random.default_rng([_SEED, day, 1]).permutation(len(columns[0]))
            table = pa.table([column[order] for column in columns], schema=_SCHEMA)
            name = f"{FIRST_DAY + datetime.timedelta(days=day)}.parquet"
            pq.write_table(table, out / name, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    return folder


def _world(shape: LogShape) -> _World:
    rng = np.random.default_rng(_SEED)
    weights = rng.lognormal(0, 1.2, shape.num_users)
    share = _MEGA_USER_EVENTS / shape.num_events
    if share < 0.1:
        mega = rng.choice(shape.num_users, 5 if share < 0.01 else 1, replace=False)
        weights /= weights.sum()
        weights[mega] = share
    popularity = np.arange(1, shape.num_items + 1, dtype=np.float64) ** -1.05
    return _World(
        user_ids=rng.permutation(np.arange(shape.num_users, dtype=np.int64) * 7919 + 10_000_019),
        user_cdf=np.cumsum(weights) / weights.sum(),
        item_cdf=np.cumsum(popularity) / popularity.sum(),
    )


def _day(world: _World, shape: LogShape, day: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Columns of the day's file, and of the duplicates that the next day's file holds."""
    rng = np.random.default_rng([_SEED, day, 0])
    num_rows = shape.num_events * (day + 1) // NUM_DAYS - shape.num_events * day // NUM_DAYS
    num_repeated = int(num_rows * _REPEATED_SHARE)
    num_rows -= num_repeated
    user_id = world.user_ids[_draw(world.user_cdf, rng.random(num_rows))]
    if shape.hot_user_events:
        user_id[rng.random(num_rows) < shape.hot_user_events / shape.num_events] = 1
    item_id = (mix64(_draw(world.item_cdf, rng.random(num_rows))) >> np.uint64(24)).astype(np.int64)
    time_ms = _FIRST_MS + day * _MS_PER_DAY + (rng.beta(3, 2, num_rows) * (_MS_PER_DAY - 1)).astype(np.int64)
    tied, like = rng.integers(0, num_rows, (2, int(num_rows * _TIED_SHARE)))
    user_id[tied], time_ms[tied] = user_id[like], time_ms[like]
    duration_ms = np.minimum(rng.lognormal(9.8, 0.9, num_rows), 3e6).astype(np.int32)
    columns = [
        user_id,
        item_id,
        time_ms,
        *((rng.random(num_rows, np.float32) < rate).astype(np.int8) for rate in _RATES),
        np.minimum(duration_ms * rng.gamma(0.7, 0.8, num_rows), 3e6).astype(np.int32),
        duration_ms,
        _draw(np.cumsum(_TAB_RATES), rng.random(num_rows)).astype(np.int8),
    ]
    repeated = rng.integers(0, num_rows, num_repeated)
    same_day = (rng.random(num_repeated) >= _REPEATED_NEXT_DAY) | (day == NUM_DAYS - 1)
    today = [np.concatenate([column, column[repeated[same_day]]]) for column in columns]
    return today, [column[repeated[~same_day]] for column in columns]


def _draw(cdf: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    return np.minimum(np.searchsorted(cdf, uniform), len(cdf) - 1)
