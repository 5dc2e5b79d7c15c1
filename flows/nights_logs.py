"""Synthetic daily logs in KuaiRand's columns whose users and items drift from day to day, for simulated nights."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.calendar import day_start_ms
from features.files import atomic_file

NUM_TOPICS = 8
NUM_TABS = 3
# Users and items come and go: each day the oldest of them leave and as many new ones arrive.
FIRST_DAY = datetime.date(2024, 2, 1)
MAX_DAYS = 100
NEW_USERS, NEW_ITEMS = 3, 2
_DEGREES = np.array(["low_active", "middle_active", "full_active"])


@dataclass(frozen=True)
class World:
    """A small service.

    Attributes:
        seed: equal worlds write equal bytes.
        timezone: of its days.
        num_users, num_items, events_per_day: of a day.
    """

    seed: int
    timezone: str
    num_users: int = 300
    num_items: int = 160
    events_per_day: int = 2400

    def write_side_tables(self, folder: Path) -> None:
        """Writes user_features.csv and video_features_basic.csv, of all who will ever come."""
        rng = np.random.default_rng([self.seed, 0])
        user = np.arange(self.num_users + MAX_DAYS * NEW_USERS)
        degree = _DEGREES[rng.integers(0, len(_DEGREES), len(user))]
        users = pl.DataFrame({"user_id": user, "user_active_degree": degree})
        item = np.arange(self.num_items + MAX_DAYS * NEW_ITEMS)
        topic = item % NUM_TOPICS
        items = pl.DataFrame({"video_id": item, "author_id": topic * 10 + item % 5, "tag": topic.astype(str)})
        for table, name in ((users, "user_features.csv"), (items, "video_features_basic.csv")):
            with atomic_file(folder / name) as temporary:
                table.write_csv(temporary)

    def write_day(self, folder: Path, date: datetime.date, *, broken: float = 0.0, feed_error: bool = False) -> Path:
        """Writes a day's log.

        Args:
            folder: where it lands.
            date: the local day.
            broken: share of rows whose time cannot be read.
            feed_error: clicks are doubled and every surface is the same one, as after a mistake in the logging code.
        """
        table = self._events(date, feed_error=feed_error)
        if broken:
            bad = np.random.default_rng([self.seed, 2]).random(len(table)) < broken
            text = np.where(bad, "soon", table["time_ms"].cast(pl.String).to_numpy())
            table = table.with_columns(time_ms=pl.Series(text.tolist()))
        path = folder / f"log_standard_{date:%Y%m%d}.csv"
        with atomic_file(path) as temporary:
            table.write_csv(temporary)
        return path

    def _events(self, date: datetime.date, *, feed_error: bool) -> pl.DataFrame:
        """A day's rows, by time."""
        rng = np.random.default_rng([self.seed, 1, date.toordinal()])
        age = date.toordinal() / 30.0
        size = self.events_per_day
        days = (date - FIRST_DAY).days
        user = NEW_USERS * days + rng.integers(0, self.num_users, size)
        # What is popular goes round slowly, and so do the users' tastes.
        topic = (rng.integers(0, NUM_TOPICS, size) + rng.binomial(2, 0.5 + 0.3 * np.sin(age), size)) % NUM_TOPICS
        oldest = NEW_ITEMS * days
        item = oldest + (topic - oldest) % NUM_TOPICS + NUM_TOPICS * rng.integers(0, self.num_items // NUM_TOPICS, size)
        taste = np.sin(user[:, None] * 1.7 + np.arange(NUM_TOPICS) * 2.1 + 0.4 * age)[np.arange(size), topic]
        quality = np.sin(item * 0.9) + np.sin(topic * 1.3 + age)
        click = rng.random(size) < _sigmoid(-0.9 + 1.5 * taste + 1.2 * quality)
        long_view = click & (rng.random(size) < _sigmoid(0.2 + 0.9 * taste + 0.5 * quality))
        like = click & (rng.random(size) < _sigmoid(-2.2 + 1.2 * taste + quality))
        tab = rng.integers(0, NUM_TABS, size)
        if feed_error:
            click, tab = click | (rng.random(size) < 0.5), np.zeros(size, np.int64)
        start, end = (day_start_ms(day, self.timezone) for day in (date, date + datetime.timedelta(days=1)))
        duration = 8_000 + 500 * (item % 60)
        watched = np.where(long_view, 0.95, np.where(click, 0.6, 0.1)) * duration * rng.uniform(0.8, 1.05, size)
        columns = {
            "user_id": user,
            "video_id": item,
            "time_ms": rng.integers(start, end, size),
            "is_click": click.astype(np.int64),
            "is_like": like.astype(np.int64),
            "long_view": long_view.astype(np.int64),
            "play_time_ms": watched.astype(np.int64),
            "duration_ms": duration,
            "is_rand": np.zeros(size, np.int64),
            "tab": tab,
        }
        return pl.DataFrame(columns).sort("time_ms", "user_id", "video_id")


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
