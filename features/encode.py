"""Heterogeneous action encodings: intensity and context codes of a token. Code 0 always means unknown."""

from __future__ import annotations

import numpy as np

from features.calendar import MS_PER_DAY, local_ms
from features.config import IntensityConfig
from features.errors import DataError
from features.spec import CategoricalField

_MAX_INTENSITY_SIZE = 256
_MS_PER_HOUR = 3_600_000
_MS_PER_WEEK = 7 * MS_PER_DAY
_MS_SINCE_MONDAY = 3 * MS_PER_DAY  # 1970-01-01 was a Thursday
_NUM_DURATION_CODES = 64
_NUM_GAP_CODES = 32
_SIZES = {"hour": 25, "weekday": 8, "duration": _NUM_DURATION_CODES, "gap": _NUM_GAP_CODES}


def intensity_size(config: IntensityConfig) -> int:
    """Number of intensity codes, the unknown one included.

    Raises:
        DataError: they do not fit in the column's 8 bits.
    """
    values = len(config.value_edges) + 1 if config.value_edges else 0
    size = 1 + _num_watch_codes(config) + values
    if size > _MAX_INTENSITY_SIZE:
        raise DataError(
            f"features.intensity: its edges make {size} codes, at most {_MAX_INTENSITY_SIZE} fit; list fewer edges"
        )
    return size


def _num_watch_codes(config: IntensityConfig) -> int:
    return (len(config.watch_ratio_edges) + 2) * (len(config.watch_ms_edges) + 1)


def encode_intensity(
    watch_ms: np.ndarray, duration_ms: np.ndarray, value: np.ndarray, config: IntensityConfig
) -> np.ndarray:
    """How strongly the user reacted: bucket of watch ratio x watch time, or of an explicit value.

    Args:
        watch_ms: (N,) float64, NaN = unknown.
        duration_ms: (N,) float64, NaN = unknown.
        value: (N,) float64, NaN = unknown; used where watch_ms is unknown.
        config: bucket edges; a value equal to an edge falls into the bucket above it.

    Returns:
        (N,) uint8 codes as in the data contract.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = watch_ms / duration_ms
    unknown_ratio = ~np.isfinite(ratio)
    codes = _buckets(ratio, config.watch_ratio_edges)
    codes[unknown_ratio] = len(config.watch_ratio_edges) + 1
    codes *= np.uint8(len(config.watch_ms_edges) + 1)
    codes += _buckets(watch_ms, config.watch_ms_edges)
    codes += np.uint8(1)
    unknown_watch = np.isnan(watch_ms)
    codes[unknown_watch] = 0
    if config.value_edges:
        by_value = unknown_watch & ~np.isnan(value)
        codes[by_value] = 1 + _num_watch_codes(config) + _buckets(value[by_value], config.value_edges)
    return codes


def _buckets(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    """(N,) uint8 number of edges at or below each value, 0 for NaN; of few edges comparing beats searching."""
    buckets = np.zeros(len(values), np.uint8)
    for edge in edges:
        buckets += (values >= edge).view(np.uint8)
    return buckets


def encode_hour(timestamp_ms: np.ndarray, timezone: str) -> np.ndarray:
    """1 + local hour of day, uint8."""
    return encode_clock(timestamp_ms, timezone)[0]


def encode_weekday(timestamp_ms: np.ndarray, timezone: str) -> np.ndarray:
    """1 for Monday to 7 for Sunday, local, uint8."""
    return encode_clock(timestamp_ms, timezone)[1]


def encode_clock(timestamp_ms: np.ndarray, timezone: str) -> tuple[np.ndarray, np.ndarray]:
    """The codes of hour and weekday."""
    # Whole weeks before the first one make the hours positive, and unsigned numbers are the fastest to divide.
    since_monday = local_ms(timestamp_ms, timezone) + _MS_SINCE_MONDAY
    weeks = min(int(since_monday.min(initial=0)) // _MS_PER_WEEK, 0)
    hours = (since_monday - weeks * _MS_PER_WEEK).view(np.uint64) // np.uint64(_MS_PER_HOUR)
    hours = hours.astype(np.uint32)
    days = hours // np.uint32(24)
    hour = (hours - days * np.uint32(24)).astype(np.uint8)
    weekday = (days - days // np.uint32(7) * np.uint32(7)).astype(np.uint8)
    return hour + np.uint8(1), weekday + np.uint8(1)


def encode_duration(duration_ms: np.ndarray) -> np.ndarray:
    """1 + floor(4 log2(1 + seconds)), at most 63; 0 where NaN. uint8."""
    return _log_code(duration_ms, 4.0, _NUM_DURATION_CODES)


def encode_gap(timestamp_ms: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """1 + floor(log2(1 + seconds to the next older event of the same user)), at most 31; 0 for the oldest. uint8.

    Args:
        timestamp_ms: (N,) newest first within each user.
        offsets: (U + 1,) rows of each user.
    """
    codes = np.zeros(len(timestamp_ms), np.uint8)
    codes[:-1] = _log_code(timestamp_ms[:-1] - timestamp_ms[1:], 1.0, _NUM_GAP_CODES)
    ends = offsets[1:][np.diff(offsets) > 0]
    codes[ends - 1] = 0
    return codes


def _log_code(milliseconds: np.ndarray, steps_per_octave: float, num_codes: int) -> np.ndarray:
    """1 + floor(steps x log2(1 + seconds)), at most the last code; 0 where that is no number."""
    with np.errstate(invalid="ignore", divide="ignore"):
        seconds = milliseconds / 1000.0
        seconds += 1.0
        steps = np.log2(seconds, out=seconds)
        steps *= steps_per_octave
        np.minimum(steps, num_codes - 2, out=steps)
        codes = steps.astype(np.uint8)
    codes += np.uint8(1)
    unknown = np.isnan(steps)
    if unknown.any():
        codes[unknown] = 0
    return codes


def context_fields(names: tuple[str, ...], num_surfaces: int) -> tuple[CategoricalField, ...]:
    """Name and number of codes of each context; surfaces are vocabulary rows."""
    sizes = {**_SIZES, "surface": num_surfaces}
    return tuple(CategoricalField(name=name, size=sizes[name]) for name in names)
