"""Synthetic logs in KuaiRand's files: a stand-in of any size for real logs, in which history truly helps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.files import atomic_directory
from pipelines.sources.synthetic_behaviour import RESPONSES, make_impressions
from pipelines.sources.synthetic_tables import (
    LOG_COLUMNS,
    SECOND_FILE_DAY,
    log_table,
    user_table,
    video_table,
)
from pipelines.sources.synthetic_world import (
    Catalogue,
    SyntheticSettings,
    Users,
    events_per_user,
    make_catalogue,
    make_users,
)

__all__ = ["DirtyCounts", "SyntheticSettings", "write_kuairand_logs"]

FIRST_LOG = "log_standard_4_08_to_4_21_pure.csv"
SECOND_LOG = "log_standard_4_22_to_5_08_pure.csv"
USER_FEATURES = "user_features_pure.csv"
VIDEO_FEATURES = "video_features_basic_pure.csv"
EVENTS_PER_BLOCK = 250_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DirtyCounts:
    """How many log rows are wrong in which way; a row is wrong in one way at most.

    Attributes:
        bad_integers: user_id, video_id, time_ms or is_click is no integer.
        negative_ids: user_id or video_id is below 0.
        seconds: time_ms is in seconds.
        null_fields: user_id, video_id or time_ms is empty.
        short_lines: the line ends after is_click.
        duplicates: rows added that equal another in every column.
        moved_rows: correct rows out of their user's time order.
    """

    bad_integers: int = 0
    negative_ids: int = 0
    seconds: int = 0
    null_fields: int = 0
    short_lines: int = 0
    duplicates: int = 0
    moved_rows: int = 0

    def __add__(self, other: DirtyCounts) -> DirtyCounts:
        return DirtyCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def broken(self) -> int:
        """Rows that no reader can accept."""
        return self.bad_integers + self.negative_ids + self.seconds + self.null_fields + self.short_lines


def write_kuairand_logs(out: Path, settings: SyntheticSettings) -> DirtyCounts:
    """Writes KuaiRand-Pure's two standard logs, user features and basic video features into the folder `out`.

    The folder appears whole or not at all and replaces an older one. Equal settings give the same bytes. Memory
    follows the number of items and users and a block of impressions, not the number of impressions.

    Returns:
        What is wrong with the rows: nothing unless `settings.dirty`.

    Raises:
        DataError: another process writes to `out`.
    """
    catalogue = make_catalogue(settings, _spreads("item_sd"))
    dirty = DirtyCounts()
    user_tables = []
    with atomic_directory(out) as folder:
        for name in (FIRST_LOG, SECOND_LOG):
            (folder / name).write_text(",".join(LOG_COLUMNS) + "\n")
        for users in _user_blocks(settings, catalogue):
            user_tables.append(user_table(users, settings))
            dirty += _append_block(folder, users, catalogue, settings)
        pl.concat(user_tables).write_csv(folder / USER_FEATURES)
        video_table(catalogue, settings).write_csv(folder / VIDEO_FEATURES)
    return dirty


def _spreads(name: str) -> np.ndarray:
    return np.array([getattr(response, name) for response in RESPONSES.values()])


def _user_blocks(settings: SyntheticSettings, catalogue: Catalogue) -> Iterator[Users]:
    """Consecutive users with about EVENTS_PER_BLOCK impressions together."""
    num_events = events_per_user(settings)
    block = (np.cumsum(num_events) - 1).clip(0) // EVENTS_PER_BLOCK
    bounds = np.r_[0, np.flatnonzero(np.diff(block)) + 1, len(num_events)]
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        yield make_users(settings, catalogue, num_events[first:last], first=first, user_sd_R=_spreads("user_sd"))
        logger.info("synthetic logs: %d of %d impressions", num_events[:last].sum(), settings.num_events)


def _append_block(folder: Path, users: Users, catalogue: Catalogue, settings: SyntheticSettings) -> DirtyCounts:
    """Draws a block's impressions and appends them to the two logs."""
    rng = np.random.default_rng([settings.seed, 6, int(users.user_id_U[0])])
    impressions = make_impressions(users, catalogue, settings, rng)
    log = log_table(impressions, users, catalogue, settings=settings, rng=rng)
    in_first = pl.col("date") < int(f"{SECOND_FILE_DAY:%Y%m%d}")
    dirty = DirtyCounts()
    for name, rows in ((FIRST_LOG, log.filter(in_first)), (SECOND_LOG, log.filter(~in_first))):
        with (folder / name).open("ab") as file:
            if settings.dirty:
                lines, counts = _soil(rows, rng)
                lines.write_csv(file, include_header=False, quote_style="never")
                dirty += counts
            else:
                rows.write_csv(file, include_header=False)
    return dirty


def _soil(rows: pl.DataFrame, rng: np.random.Generator) -> tuple[pl.DataFrame, DirtyCounts]:
    """Breaks, repeats and moves a few rows; returns the lines of text and what was done."""
    size = len(rows)
    each = size // 1_000
    num_duplicates, num_moved = size // 200, size // 1_000 * 2
    chosen = rng.permutation(size)[: 5 * each + num_duplicates + num_moved]
    bad, negative, seconds, null, short, repeated, moved = np.split(chosen, np.cumsum([each] * 5 + [num_duplicates]))
    text = {name: rows[name].cast(pl.String).to_numpy().astype(object) for name in LOG_COLUMNS}
    for columns, places, broken in (
        (("user_id", "video_id", "time_ms", "is_click"), bad, lambda value: value + "x"),
        (("user_id", "video_id"), negative, lambda value: str(-1 - int(value))),
        (("time_ms",), seconds, lambda value: value[:-3]),
        (("user_id", "video_id", "time_ms"), null, lambda value: ""),
    ):
        for turn, row in enumerate(places.tolist()):
            column = columns[turn % len(columns)]
            text[column][row] = broken(text[column][row])
    lines = pl.DataFrame(text).select(pl.concat_str(LOG_COLUMNS, separator=",")).to_series().to_numpy().astype(object)
    for row in short.tolist():
        lines[row] = ",".join(lines[row].split(",")[:6])
    # A moved row changes places with the first row, of another user or an earlier time, of the other half.
    half = len(moved) // 2
    lines[moved[:half]], lines[moved[half:]] = lines[moved[half:]], lines[moved[:half]]
    lines = np.insert(lines, repeated + 1, lines[repeated])
    counts = DirtyCounts(each, each, each, each, each, num_duplicates, len(moved))
    return pl.DataFrame({"line": lines.tolist()}, schema={"line": pl.String}), counts
