"""Local days and hours of UTC milliseconds, correct across daylight-saving changes."""

from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

MS_PER_DAY = 86_400_000


def local_ms(timestamp_ms: np.ndarray, timezone: str) -> np.ndarray:
    """Wall-clock milliseconds since 1970 in `timezone`, int64, same shape."""
    utc = pl.Series(timestamp_ms, dtype=pl.Int64).cast(pl.Datetime("ms", "UTC"))
    return utc.dt.convert_time_zone(timezone).dt.replace_time_zone(None).cast(pl.Int64).to_numpy()


def local_day_index(timestamp_ms: np.ndarray, timezone: str) -> np.ndarray:
    """Local days since 1970-01-01, int64."""
    return local_ms(timestamp_ms, timezone) // MS_PER_DAY


def day_start_ms(day: datetime.date, timezone: str) -> int:
    """UTC milliseconds at which the local day begins."""
    midnight = datetime.datetime.combine(day, datetime.time(), ZoneInfo(timezone))
    return int(midnight.timestamp()) * 1000


def evaluation_cut_ms(last_day: datetime.date, eval_days: int, timezone: str) -> int:
    """UTC milliseconds at which the last `eval_days` local days begin."""
    return day_start_ms(last_day - datetime.timedelta(days=eval_days - 1), timezone)
